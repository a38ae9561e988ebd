// What this machine can do at most, measured: what speeds are compared with.
#pragma once

#include <cstdint>
#include <string>

namespace vlakern {

// Operations per second, a multiplication and an addition counting as two, of one pass of the
// instruction that multiplies weights of this kind, with registers alone, for about a millisecond.
double peak_rate(const std::string& kind, const std::string& isa, int threads);

// Bytes per second of one reading of [address, address + bytes).
double read_rate(std::uintptr_t address, std::int64_t bytes, int threads);

// The same of one writing.
double write_rate(std::uintptr_t address, std::int64_t bytes, int threads);

}  // namespace vlakern
