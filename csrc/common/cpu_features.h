// Which instruction sets this build holds and this CPU has.
#pragma once

#include <string>
#include <vector>

namespace vlakern {

// Best first: a CPU that has one has, on its architecture, all that follow.
enum class Isa : int { kAvx512Bf16, kAvx512, kAvx2, kNeon, kScalar };

const char* isa_name(Isa isa);

// Built into this module and usable on this CPU, best first; never empty.
const std::vector<Isa>& available_isas();
std::vector<std::string> isas();

// Whether bytes may be multiplied by AVX-512's VNNI: built, on this CPU, and no set below AVX-512
// was asked for.
bool has_vnni(Isa isa);

// The best if `forced` is empty, else the one of that name; UnsupportedError if it is not
// available.
Isa select_isa(const std::string& forced);
std::string selected_isa(const std::string& forced);

}  // namespace vlakern
