// Where tests spoil numbers on their way from a chunk to the sink; nothing in every other build.
#pragma once

namespace vlakern::executor {

#ifdef VLAKERN_FAULT_POINTS
enum class Stage {
  kQueued,        // actions that were checked and wait for the control thread
  kInterpolated,  // what is wanted now and was wanted a tick ago
  kLimited,       // position, velocity and acceleration of a dimension, as they are to be next
  kCommand,       // positions of the command
};
inline void (*fault_point)(Stage stage, double* numbers, int count) = nullptr;
#define VLAKERN_FAULT_POINT(stage, numbers, count) \
  if (fault_point != nullptr) fault_point(Stage::stage, numbers, count)
#else
#define VLAKERN_FAULT_POINT(stage, numbers, count) static_cast<void>(0)
#endif

}  // namespace vlakern::executor
