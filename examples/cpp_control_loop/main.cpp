// A C++ program owns the loop and embeds a policy: Python infers on this thread and holds its lock
// as long as it likes, while the executor's thread, which knows no Python, keeps its tick.
//
//   cpp_control_loop POLICY [SECONDS]     (a policy of Meta-World's arm, such as metaworld-small)
//
// This is no safety-rated function: the robot's own emergency stop stays in charge.
#include <pybind11/embed.h>
#include <pybind11/numpy.h>
#include <vlakern/executor/executor.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <vector>

namespace ex = vlakern::executor;
namespace py = pybind11;
using namespace pybind11::literals;

constexpr int kDims = 4;             // the hand's x, y, z [m], and the gripper's effort
constexpr double kMetres = 0.01;     // of an action of 1, per step
constexpr double kTickRate = 200.0;  // [Hz]
struct Arm {
  std::atomic<double> position[kDims] = {0.0, 0.6, 0.2, 0.0};

  static int send(void* arm, const ex::Command& command) {
    for (int i = 0; i < kDims; ++i) static_cast<Arm*>(arm)->position[i] = command.position[i];
    return 0;
  }
};

double seconds_since(ex::Nanoseconds t) {
  return 1e-9 * static_cast<double>(ex::monotonic_now() - t);
}

// The places that the hand is to be at after each action of a chunk.
std::vector<double> commands(const py::array_t<float>& actions, const std::vector<double>& from) {
  const auto rows = actions.unchecked<2>();
  std::vector<double> all, target = from;
  for (py::ssize_t step = 0; step < rows.shape(0); ++step) {
    for (int i = 0; i < kDims; ++i) {
      const double action = std::clamp(static_cast<double>(rows(step, i)), -1.0, 1.0);
      double& value = target[static_cast<std::size_t>(i)];
      value = i < 3 ? value + kMetres * action : action;
      all.push_back(value);
    }
  }
  return all;
}

void run(const char* name, double seconds) {
  const py::object vlakern = py::module_::import("vlakern");
  const py::object policy = vlakern.attr("load")(name, "device"_a = "cpu");
  const int side = policy.attr("image_size").cast<int>();
  const auto observe = [&](const std::vector<double>& at) {
    py::dict images;
    for (const py::handle view : policy.attr("views")) {
      images[view] =
          py::module_::import("numpy").attr("full")(py::make_tuple(side, side, 3), 128, "uint8");
    }
    const double measured[kDims] = {at[0], at[1], at[2], 1.0};
    const py::array_t<double> state(kDims, measured);
    return vlakern.attr("Observation")(images, state, "reach the goal");
  };
  ex::Config config;
  config.tick_rate = kTickRate;
  config.policy_rate = policy.attr("control_rate").cast<double>();
  config.most_steps = policy.attr("chunk").cast<int>();
  config.held = {3};
  config.limits.position_min = {-0.5, 0.3, 0.0, -1.0};
  config.limits.position_max = {0.5, 1.0, 0.5, 1.0};
  config.limits.velocity = {1.0, 1.0, 1.0, 400.0};
  Arm arm;
  ex::Executor executor(config, {}, {Arm::send, &arm});
  std::vector<double> now(std::begin(arm.position), std::end(arm.position));
  policy.attr("act")(observe(now));  // the first call prepares memory
  executor.start(now.data());

  const ex::Nanoseconds begin = ex::monotonic_now();
  int chunks = 0;
  double held = 0.0;
  while (seconds_since(begin) < seconds) {
    now.assign(std::begin(arm.position), std::end(arm.position));
    const ex::Nanoseconds observed = ex::monotonic_now();
    const py::object chunk = policy.attr("act")(observe(now));
    const auto wanted = commands(chunk.attr("actions").cast<py::array_t<float>>(), now);
    std::uint64_t id = 0;
    executor.submit(wanted.data(), static_cast<int>(wanted.size()) / kDims, kDims, observed, &id);
    ++chunks;
    const ex::Nanoseconds taken = ex::monotonic_now();
    py::eval("sum(range(1_000_000))");  // whatever else Python does with its lock
    held += seconds_since(taken);
  }
  const auto& counters = executor.core().counters();
  std::printf("Python made %d chunks in %.2f s, and held its lock for %.2f s besides\n", chunks,
              seconds_since(begin), held);
  std::cout << "ticks: " << counters.ticks.get() << " at " << kTickRate << " Hz, missed "
            << counters.missed.get() << std::endl;
  std::printf("late: p50 %.3f ms, p99 %.3f ms, p99.9 %.3f ms, max %.3f ms\n",
              counters.lateness.quantile(0.5) * 1e3, counters.lateness.quantile(0.99) * 1e3,
              counters.lateness.quantile(0.999) * 1e3, counters.lateness.most() * 1e3);
  executor.stop();
}

int main(int count, char** words) {
  PyConfig config;
  PyConfig_InitPythonConfig(&config);
  // The environment that vlakern is installed in, also a virtual one.
  PyConfig_SetBytesString(&config, &config.program_name, PYTHON);
  const py::scoped_interpreter python(&config);
  try {  // an error of Python's cannot outlive Python
    run(count > 1 ? words[1] : "metaworld-small", count > 2 ? std::atof(words[2]) : 3.0);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
