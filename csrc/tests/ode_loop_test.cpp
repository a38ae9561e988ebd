// Runs ode_loop's device code on the host (tests/host_warp.h): random networks against sums in
// double, the same bits from any number of blocks, and proof that a missing wait is noticed.
//
//   ode_loop_test PROBLEMS          "N problems", exit code 0
//   ode_loop_test PROBLEMS MISTAKE  what a forgotten wait, sync or meeting gives: exit code 3
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "tests/ode_loop_host.h"
#include "tests/ode_loop_plain.h"

namespace {

using vlakern::tests::Mistake;
using vlakern::tests::OdeLoopProblem;

// In memory full of NaN; the actions.
std::vector<float> run_loop(OdeLoopProblem& problem, int blocks, int shared, unsigned seed,
                            Mistake mistake) {
  problem.spoil();
  vlakern::tests::ode_loop_host(problem.params(), blocks, shared, seed, mistake);
  return problem.actions();
}

// The largest error of a value, as a share of the largest value.
double error(const std::vector<float>& found, const std::vector<double>& exact) {
  double worst = 0, scale = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    const double apart = std::abs(found[i] - exact[i]);
    if (std::isnan(apart)) return apart;
    worst = std::max(worst, apart);
    scale = std::max(scale, std::abs(exact[i]));
  }
  return worst / scale;
}

// No worse than twice what the same roundings cost where all else is exact.
int check(int number, Mistake mistake) {
  OdeLoopProblem problem(static_cast<unsigned>(number));
  const std::vector<double> exact = problem.plain(false), rounded = problem.plain(true);
  const std::vector<float> usual(rounded.begin(), rounded.end());
  const double allowed = 2 * std::max(error(usual, exact), 1.0 / 256);
  const int shared = number % 2 == 0 ? 99 * 1024 : 227 * 1024;
  const auto seed = static_cast<unsigned>(number);
  const std::vector<float> found = run_loop(problem, 1 + number % 4, shared, seed, mistake);
  const double worst = error(found, exact);
  if (!(worst <= allowed)) {
    std::printf("problem %d (%s): error %g, allowed %g\n", number, problem.said().c_str(), worst,
                allowed);
    return 3;
  }
  const std::vector<float> again = run_loop(problem, 2 + number % 3, 99 * 1024, seed + 1, mistake);
  if (std::memcmp(again.data(), found.data(), found.size() * sizeof(float)) != 0) {
    std::printf("problem %d: other bits from another number of blocks\n", number);
    return 3;
  }
  return 0;
}

}  // namespace

int main(int count, char** words) {
  const int problems = count > 1 ? std::atoi(words[1]) : 9;
  const std::string name = count > 2 ? words[2] : "";
  Mistake mistake = Mistake::kNone;
  if (name == "wait") mistake = Mistake::kNoWait;
  if (name == "sync") mistake = Mistake::kNoSync;
  if (name == "meeting") mistake = Mistake::kNoMeeting;
  for (int i = 0; i < problems; ++i) {
    const int code = check(i, mistake);
    if (code != 0) return code;
  }
  std::printf("%d problems\n", problems);
  return 0;
}
