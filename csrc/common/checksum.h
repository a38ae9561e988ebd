// A sum over memory that any changed bit changes, as fast as memory is read.
#pragma once

#include <cstdint>

namespace vlakern {

// Of `bytes` bytes from `address` on, on up to `threads` threads; the same whatever their number.
//
// Fletcher's two sums (1982) modulo 2^64 in eight lanes of 64 bits, in blocks of a megabyte that
// are mixed with their numbers. It finds damage, not forgery.
std::uint64_t checksum(std::uintptr_t address, std::uint64_t bytes, int threads);

}  // namespace vlakern
