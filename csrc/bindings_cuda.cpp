// vlakern._native_cuda: one line per function. Imported only where an NVIDIA driver is.
#include <nanobind/nanobind.h>

#include "ode_loop/ode_loop_python.h"
#include "ode_step/ode_step_python.h"

namespace nb = nanobind;
namespace py = vlakern::python;

NB_MODULE(_native_cuda, m) {
  using Unlocked = nb::call_guard<nb::gil_scoped_release>;
  vlakern::register_errors();
  m.def("ode_step", &py::ode_step_cuda, Unlocked());
  py::bind_ode_loop<vlakern::ode_loop_cuda>(m);
}
