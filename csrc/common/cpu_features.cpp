#include "common/cpu_features.h"

#include "common/error.h"

namespace vlakern {
namespace {

constexpr const char* kNames[] = {"avx512_bf16", "avx512", "avx2", "neon", "scalar"};

#if defined(__x86_64__)
// __builtin_cpu_supports also asks whether the operating system saves the wide registers.
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

std::vector<Isa> detect() {
  std::vector<Isa> found;
#if defined(VLAKERN_HAS_AVX512_BF16)
  if (has_avx512() && __builtin_cpu_supports("avx512bf16") &&
      __builtin_cpu_supports("avx512vnni")) {
    found.push_back(Isa::kAvx512Bf16);
  }
#endif
#if defined(VLAKERN_HAS_AVX512)
  if (has_avx512()) found.push_back(Isa::kAvx512);
#endif
#if defined(VLAKERN_HAS_AVX2)
  if (has_avx2()) found.push_back(Isa::kAvx2);
#endif
#if defined(VLAKERN_HAS_NEON)
  found.push_back(Isa::kNeon);  // part of the AArch64 base
#endif
  found.push_back(Isa::kScalar);
  return found;
}

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

const std::vector<Isa>& available_isas() {
  static const std::vector<Isa> found = detect();
  return found;
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (Isa isa : available_isas()) names.emplace_back(isa_name(isa));
  return names;
}

bool has_vnni(Isa isa) {
#if defined(VLAKERN_HAS_AVX512_VNNI)
  static const bool found = has_avx512() && __builtin_cpu_supports("avx512vnni");
  return found && (isa == Isa::kAvx512Bf16 || isa == Isa::kAvx512);
#else
  static_cast<void>(isa);
  return false;
#endif
}

Isa select_isa(const std::string& forced) {
  if (forced.empty()) return available_isas().front();
  for (Isa isa : available_isas()) {
    if (forced == isa_name(isa)) return isa;
  }
  std::string have;
  for (Isa isa : available_isas()) {
    have += (have.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  throw UnsupportedError("instruction set " + forced +
                         " is not available; this CPU and build have " + have);
}

std::string selected_isa(const std::string& forced) { return isa_name(select_isa(forced)); }

}  // namespace vlakern
