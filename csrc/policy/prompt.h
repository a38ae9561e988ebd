// From an instruction to the order of a document's tokens, and what each of them sees.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "policy/config.h"
#include "policy/tokenizer.h"

namespace vlakern {

// Token ids of an instruction by the policy's rule.
std::vector<std::int32_t> prompt_tokens(const Processing& rule, const Tokenizer& tokenizer,
                                        std::string instruction);

// One document's prefix, as the engine's PrefixInput takes it.
struct PrefixRows {
  std::vector<std::int32_t> tokens, semantic_order, semantic_rows, action_rows, order, positions,
      cu, kv_end;
};

PrefixRows prefix_rows(const ModelConfig& model, const Tokenizer& tokenizer,
                       const std::vector<std::int32_t>& instruction, std::int64_t views);

}  // namespace vlakern
