#include "policy/prompt.h"

#include <algorithm>

#include "common/error.h"

namespace vlakern {
namespace {

constexpr std::size_t kMostCharacters = 4096;

enum class Kind { kText, kView, kState };

// Tokens in order, and for the semantic expert's which of [text | images | states] each is.
class Rows {
 public:
  Rows(const ModelConfig& model, const Tokenizer& tokenizer, std::int64_t views)
      : model_(model), tokenizer_(tokenizer), views_(views) {}

  void text(const std::string& words) {
    if (!words.empty()) text(tokenizer_.encode(words));
  }
  void text(const std::vector<std::int32_t>& ids) {
    tokens_.insert(tokens_.end(), ids.begin(), ids.end());
    kinds_.insert(kinds_.end(), ids.size(), Kind::kText);
  }
  void images() {
    if (!model_.wrap_each) text(model_.view_open);
    for (std::int64_t i = 0; i < views_; ++i) {
      if (model_.wrap_each) text(model_.view_open);
      kinds_.insert(kinds_.end(), static_cast<std::size_t>(model_.sizes.vision.tokens()),
                    Kind::kView);
      if (model_.wrap_each) text(model_.view_close);
    }
    if (!model_.wrap_each) text(model_.view_close);
  }
  void state() { kinds_.push_back(Kind::kState); }

  PrefixRows finish() const {
    PrefixRows out;
    out.tokens = tokens_;
    const auto count = static_cast<std::int32_t>(kinds_.size());
    auto word = std::int32_t{0}, image = static_cast<std::int32_t>(tokens_.size());
    const auto after = static_cast<std::int32_t>(image + views_ * model_.sizes.vision.tokens());
    for (std::int32_t row = 0; row < count; ++row) {
      const Kind kind = kinds_[static_cast<std::size_t>(row)];
      out.positions.push_back(row);
      if (kind == Kind::kState && model_.sizes.owner == StateOwner::kAction) {
        out.action_rows.push_back(row);
        continue;
      }
      out.semantic_rows.push_back(row);
      out.semantic_order.push_back(kind == Kind::kText   ? word++
                                   : kind == Kind::kView ? image++
                                                         : after);
    }
    out.order.resize(kinds_.size());
    std::int32_t next = 0;
    for (const auto* rows : {&out.semantic_rows, &out.action_rows}) {
      for (const std::int32_t row : *rows) out.order[static_cast<std::size_t>(row)] = next++;
    }
    out.cu = {0, count};
    see(count, out.kv_end);
    return out;
  }

 private:
  void see(std::int32_t count, std::vector<std::int32_t>& kv_end) const {
    const auto found = std::find(kinds_.begin(), kinds_.end(), Kind::kState);
    const auto state = static_cast<std::int32_t>(found - kinds_.begin());
    for (std::int32_t row = 0; row < count; ++row) {
      std::int32_t end = count;
      if (model_.prefix_causal) {
        end = row + 1;
      } else if (model_.state_block && state < count && row <= state) {
        end = row < state ? state : state + 1;
      }
      kv_end.push_back(end);
    }
  }

  const ModelConfig& model_;
  const Tokenizer& tokenizer_;
  const std::int64_t views_;
  std::vector<std::int32_t> tokens_;
  std::vector<Kind> kinds_;
};

void clean(std::string& text, Cleaning how) {
  if (how == Cleaning::kUnderscores) return std::replace(text.begin(), text.end(), '_', ' ');
  if (how == Cleaning::kNewlines) return std::replace(text.begin(), text.end(), '\n', ' ');
  const char* const spaces = " \t\n\r\v\f";
  const std::size_t first = text.find_first_not_of(spaces);
  text = first == std::string::npos ? ""
                                    : text.substr(first, text.find_last_not_of(spaces) - first + 1);
}

}  // namespace

std::vector<std::int32_t> prompt_tokens(const Processing& rule, const Tokenizer& tokenizer,
                                        std::string instruction) {
  if (instruction.find_first_not_of(" \t\n\r\v\f") == std::string::npos ||
      instruction.size() > kMostCharacters) {
    throw InputError("the instruction has " + std::to_string(instruction.size()) +
                     " characters; expected words that name the task, at most 4096 characters");
  }
  for (const Cleaning how : rule.clean) clean(instruction, how);
  const std::size_t size = instruction.size(), ending = rule.ending.size();
  if (size < ending || instruction.compare(size - ending, ending, rule.ending) != 0) {
    instruction += rule.ending;
  }
  std::vector<std::int32_t> ids;
  if (!rule.bos.empty()) ids.push_back(tokenizer.id_of(rule.bos));
  for (std::string part : rule.parts) {
    const std::string field = "{instruction}";
    if (const std::size_t at = part.find(field); at != std::string::npos) {
      part.replace(at, field.size(), instruction);
    }
    const std::vector<std::int32_t> found = tokenizer.encode(part);
    ids.insert(ids.end(), found.begin(), found.end());
  }
  if (rule.most_tokens > 0 && static_cast<std::int64_t>(ids.size()) > rule.most_tokens) {
    ids.resize(static_cast<std::size_t>(rule.most_tokens));
  }
  return ids;
}

PrefixRows prefix_rows(const ModelConfig& model, const Tokenizer& tokenizer,
                       const std::vector<std::int32_t>& instruction, std::int64_t views) {
  Rows rows(model, tokenizer, views);
  for (const std::string& part : model.prompt) {
    if (part == "{views}") {
      rows.images();
    } else if (part == "{state}") {
      rows.state();
    } else if (part == "{instruction}") {
      rows.text(instruction);
    } else {
      rows.text(part);
    }
  }
  return rows.finish();
}

}  // namespace vlakern
