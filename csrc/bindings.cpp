// vlakern._native: one line per function.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "action_decode/action_decode_python.h"
#include "action_embed/action_embed_python.h"
#include "action_unembed/action_unembed_python.h"
#include "common/checksum.h"
#include "common/cpu_features.h"
#include "common/thread_pool.h"
#include "engine/engine_python.h"
#include "executor/executor_python.h"
#include "flow_loss/flow_loss_python.h"
#include "gated_mlp/gated_mlp_python.h"
#include "image_prep/image_prep_python.h"
#include "linear/linear_python.h"
#include "norm/norm_python.h"
#include "ode_step/ode_step_python.h"
#include "qkv_prep/qkv_prep_python.h"
#include "shared_attention/shared_attention_python.h"

namespace nb = nanobind;
namespace py = vlakern::python;

NB_MODULE(_native, m) {
  using vlakern::Tensor;
  using Unlocked = nb::call_guard<nb::gil_scoped_release>;
  vlakern::register_errors();
  m.attr("cuda_archs") = VLAKERN_CUDA_ARCHS_TEXT;
  m.def("isas", &vlakern::isas);
  m.def("selected_isa", &vlakern::selected_isa, nb::arg("forced") = "");
  m.def("default_threads", &vlakern::default_threads);
  m.def("checksum", &vlakern::checksum, Unlocked());
  nb::class_<py::ActionDecode>(m, "ActionDecode")
      .def(nb::init<const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                    const Tensor&, const Tensor&, const Tensor&, const std::string&>())
      .def("__call__", &py::ActionDecode::run);
  m.def("flow_mix", &py::flow_mix, Unlocked());
  m.def("flow_loss", &py::flow_loss, Unlocked());
  m.def("flow_loss_gradient", &py::flow_loss_gradient, Unlocked());
  m.def("philox", &py::philox);
  nb::class_<py::ImagePrep>(m, "ImagePrep")
      .def(nb::init<const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                    const py::ImagePrep::Place&, const py::ImagePrep::Norm&,
                    const py::ImagePrep::Level&, std::int64_t, const Tensor&, const std::string&,
                    int>())
      .def_prop_ro("workspace_bytes", &py::ImagePrep::workspace_bytes)
      .def("use", &py::ImagePrep::use)
      .def("__call__", &py::ImagePrep::run);
  nb::class_<py::Norm>(m, "Norm")
      .def(nb::init<const Tensor&, const py::Norm::Maybe&, const py::Norm::Maybe&,
                    const py::Norm::Maybe&, const py::Norm::Maybe&, const py::Norm::Maybe&,
                    const py::Norm::Maybe&, const py::Norm::Maybe&, const Tensor&,
                    const py::Norm::Maybe&, const std::string&, float, const std::string&, int>())
      .def("__call__", &py::Norm::run);
  m.def("norm_backward", &py::norm_backward, Unlocked());
  m.def("norm_runs", &vlakern::norm_runs);
  nb::class_<py::Linear>(m, "Linear").def(py::linear_init()).def("__call__", &py::Linear::run);
  m.def("peak_rate", &vlakern::peak_rate, Unlocked());
  m.def("read_rate", &vlakern::read_rate, Unlocked());
  m.def("write_rate", &vlakern::write_rate, Unlocked());
  m.def("linear_workspace", py::linear_workspace_bytes());
  nb::class_<py::ActionEmbed>(m, "ActionEmbed")
      .def(py::action_embed_init())
      .def("__call__", &py::ActionEmbed::run);
  nb::class_<py::ActionUnembed>(m, "ActionUnembed")
      .def(py::action_unembed_init())
      .def("__call__", &py::ActionUnembed::run);
  nb::class_<py::GatedMlp>(m, "GatedMlp")
      .def(py::gated_mlp_init())
      .def("__call__", &py::GatedMlp::run);
  m.def("prefer_huge_pages", &vlakern::prefer_huge_pages);
  m.def("ode_step", &py::ode_step_cpu, Unlocked());
  m.def("ode_step_place", &py::ode_step_place);
  m.def("ode_step_launch", &py::ode_step_launch);
  m.def("shared_attention", &py::shared_attention_cpu, Unlocked());
  m.def("shared_attention_prefix_bytes", &vlakern::shared_attention_prefix_bytes);
  m.def("shared_attention_pack_prefix", &vlakern::shared_attention_pack_prefix, Unlocked());
  m.def("shared_attention_backward", &py::shared_attention_backward_cpu, Unlocked());
  nb::class_<py::QkvPrep>(m, "QkvPrep")
      .def(nb::init<const std::vector<py::QkvExpertTuple>&, const std::vector<Tensor>&,
                    const Tensor&, const Tensor&, const Tensor&, const Tensor&, std::int64_t, float,
                    bool, const std::string&, int>())
      .def("check_permutation", &py::QkvPrep::check_permutation)
      .def("__call__", &py::QkvPrep::run);
  m.def("qkv_prep_backward", &py::qkv_prep_backward, Unlocked());
  m.def("qkv_prep_runs", &vlakern::qkv_prep_runs);
  using Sizes = std::int64_t;
  nb::class_<py::EngineModel>(m, "EngineModel")
      .def(nb::init<const std::map<std::string, double>&, const std::map<std::string, std::string>&,
                    const std::map<std::string, Tensor>&, const std::map<std::string, py::Packed>&,
                    const std::string&, const std::string&, int>())
      .def("bytes", &py::EngineModel::bytes);
  nb::class_<py::Engine>(m, "Engine")
      .def(nb::init<const py::EngineModel&, Sizes, Sizes, Sizes, Sizes, std::uintptr_t>())
      .def("patches", &py::Engine::patches)
      .def("image_tokens", &py::Engine::image_tokens)
      .def("vision", &py::Engine::vision, Unlocked())
      .def("prefix", &py::Engine::prefix, Unlocked())
      .def("integrate", &py::Engine::integrate, Unlocked())
      .def("integrate_guided", &py::Engine::integrate_guided, Unlocked())
      .def("velocity", &py::Engine::velocity, Unlocked());
  m.def("monotonic_now", &vlakern::executor::monotonic_now);
  nb::class_<py::ExecutorCore>(m, "ExecutorCore")
      .def(nb::init<const py::ExecutorLimits&, const py::ExecutorNumbers&, const std::vector<int>&,
                    const std::vector<double>&>())
      .def("submit", &py::ExecutorCore::submit)
      .def("reset", &py::ExecutorCore::reset)
      .def("halt", &py::ExecutorCore::halt)
      .def("tick", &py::ExecutorCore::tick);
  nb::class_<py::Executor>(m, "Executor")
      .def(nb::init<const py::ExecutorLimits&, const py::ExecutorNumbers&, const std::vector<int>&,
                    const py::Executor::Realtime&, const std::string&>())
      .def("start", &py::Executor::start, Unlocked())
      .def("stop", &py::Executor::stop, Unlocked())
      .def("runs", &py::Executor::runs)
      .def("submit", &py::Executor::submit)
      .def("reset", &py::Executor::reset)
      .def("halt", &py::Executor::halt)
      .def("stall", &py::Executor::stall)
      .def("next_command", &py::Executor::next_command)
      .def("state", &py::Executor::state)
      .def("statements", &py::Executor::statements)
      .def("trace", &py::Executor::trace)
      .def("counters", &py::Executor::counters);
  nb::class_<py::SharedCommands>(m, "SharedCommands")
      .def(nb::init<const std::string&>())
      .def("newest", &py::SharedCommands::newest);
}
