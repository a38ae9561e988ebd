// A small persistent thread pool, safe to use in a forked child.
#pragma once

#include <cstdint>

namespace vlakern {

// Cores this process may run on.
int default_threads();

// Calls body(context, begin, end) on at most `threads` threads over equal parts of [0, count).
// The caller works too. Runs serially when another call is using the pool.
void parallel_ranges(int threads, std::int64_t count,
                     void (*body)(const void* context, std::int64_t begin, std::int64_t end),
                     const void* context);

template <class Body>
void parallel_for(int threads, std::int64_t count, const Body& body) {
  parallel_ranges(
      threads, count,
      [](const void* context, std::int64_t begin, std::int64_t end) {
        (*static_cast<const Body*>(context))(begin, end);
      },
      &body);
}

}  // namespace vlakern
