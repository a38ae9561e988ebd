// Large read-mostly memory on large pages, where the system gives them on request.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace vlakern {

// Asks for large pages for the whole pages within [address, address + bytes). To be called before
// the memory is first written. Only advice: nothing depends on whether it is taken.
inline void prefer_huge_pages(std::uintptr_t address, std::uint64_t bytes) {
#if defined(MADV_HUGEPAGE)
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const std::uintptr_t begin = (address + page - 1) / page * page;
  const std::uintptr_t end = (address + bytes) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  static_cast<void>(address);
  static_cast<void>(bytes);
#endif
}

}  // namespace vlakern
