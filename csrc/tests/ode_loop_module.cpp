// vlakern._native_cuda's OdeLoop over the host's threads, for tests of what Python hands to it.
#include <atomic>

#include "ode_loop/ode_loop_python.h"
#include "tests/ode_loop_host.h"

namespace {

void launch(const vlakern::OdeLoopParams& p, std::uintptr_t) {
  static std::atomic<unsigned> seed{0};  // lanes and copies in another order each time
  vlakern::tests::ode_loop_host(p, 3, 99 * 1024, ++seed);
}

}  // namespace

NB_MODULE(_ode_loop_host, m) {
  vlakern::register_errors();
  vlakern::python::bind_ode_loop<launch>(m);
}
