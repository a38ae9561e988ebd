// The Python face of ode_loop: arguments by name, checked once, then launches.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>

#include <map>
#include <string>

#include "common/tensor_caster.h"
#include "ode_loop/ode_loop.h"

namespace vlakern::python {

// `kLaunch(params, stream)` is what a call does.
template <void (*kLaunch)(const OdeLoopParams&, std::uintptr_t)>
class OdeLoop {
 public:
  OdeLoop(const std::map<std::string, Tensor>& tensors,
          const std::map<std::string, double>& numbers)
      : params_(ode_loop_params(tensors, numbers)) {}

  void run(std::uintptr_t stream) const { kLaunch(params_, stream); }

 private:
  OdeLoopParams params_;
};

template <void (*kLaunch)(const OdeLoopParams&, std::uintptr_t)>
void bind_ode_loop(nanobind::module_& m) {
  using Loop = OdeLoop<kLaunch>;
  nanobind::class_<Loop>(m, "OdeLoop")
      .def(nanobind::init<const std::map<std::string, Tensor>&,
                          const std::map<std::string, double>&>())
      .def("__call__", &Loop::run, nanobind::call_guard<nanobind::gil_scoped_release>());
}

}  // namespace vlakern::python
