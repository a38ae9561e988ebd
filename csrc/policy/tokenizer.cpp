#include "policy/tokenizer.h"

#include <unistd.h>

#include <limits>

#include "common/error.h"
#include "policy/bytes.h"
#include "policy/json.h"

namespace vlakern {
namespace {

constexpr std::size_t kMostBytes = 64 << 20, kMostEntries = 4'000'000;

bool is_null(const Json* json) { return json == nullptr || json->kind == Json::Kind::kNull; }

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// The letters, digits or other signs that a run may hold.
enum class Run { kLetters, kDigits, kSigns };
bool belongs(char c, Run run) {
  if (run == Run::kLetters) return is_letter(c);
  if (run == Run::kDigits) return is_digit(c);
  return !is_letter(c) && !is_digit(c) && !is_space(c);
}

// Where the word that begins at `at` ends, by the rule of GPT-2:
// 's|'t|'re|'ve|'m|'ll|'d| ?letters| ?digits| ?signs|spaces but the last before a word|spaces
std::size_t end_of_word(const std::string& text, std::size_t at) {
  for (const char* ending : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
    if (text.compare(at, std::string(ending).size(), ending) == 0) {
      return at + std::string(ending).size();
    }
  }
  const std::size_t first = at + (text[at] == ' ' ? 1 : 0);
  for (const Run run : {Run::kLetters, Run::kDigits, Run::kSigns}) {
    std::size_t end = first;
    while (end < text.size() && belongs(text[end], run)) ++end;
    if (end > first) return end;
  }
  std::size_t end = at;
  while (end < text.size() && is_space(text[end])) ++end;
  return end < text.size() && end - at > 1 ? end - 1 : end;
}

// A byte as the letter that stands for it in a vocabulary.
std::string letter_of(unsigned char byte) {
  if (byte > 0x20 && byte < 0x7f) return std::string(1, static_cast<char>(byte));
  const unsigned code = 256u + (byte == 0x7f ? 33u : byte);
  return {static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 0x3f))};
}

std::string refusal(const Json& json) {
  const Json& model = json.at("model");
  const Json* words = json.find("pre_tokenizer");
  const Json* added = json.find("added_tokens");
  const Json* kind = model.find("type");
  const auto off = [](const Json& in, const char* key) {
    const Json* found = in.find(key);
    return is_null(found) || (found->kind == Json::Kind::kBool && !found->flag) ||
           (found->kind == Json::Kind::kText && found->text.empty());
  };
  if (is_null(kind) || kind->words() != "BPE") return "is no BPE";
  if (is_null(words) || words->at("type").words() != "ByteLevel") return "is not byte-level";
  if (!off(*words, "add_prefix_space")) return "adds a space";
  if (const Json* regex = words->find("use_regex"); regex != nullptr && !regex->boolean()) {
    return "does not part words";
  }
  if (!is_null(json.find("normalizer"))) return "normalises text";
  if (!is_null(added) && !added->list().empty()) return "has added tokens";
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix", "byte_fallback",
                          "ignore_merges", "dropout"}) {
    if (!off(model, key)) return std::string("has ") + key;
  }
  return "";
}

}  // namespace

Tokenizer::Tokenizer(const std::string& directory, std::int64_t vocab) {
  const std::string path = directory + "/tokenizer.json";
  if (::access(path.c_str(), F_OK) != 0) {
    refused_ = "there is no tokenizer.json";
    return;
  }
  const Json json = parse_json(read_file(path, kMostBytes), "tokenizer.json", kMostEntries);
  if (refused_ = refusal(json); !refused_.empty()) {
    refused_ = "tokenizer.json " + refused_;
    return;
  }
  const Json& model = json.at("model");
  for (const auto& [token, id] : model.at("vocab").fields) {
    ids_[token] = static_cast<std::int32_t>(id.count(0, vocab - 1));
  }
  int rank = 0;
  for (const Json& merge : model.at("merges").list()) {
    if (merge.kind == Json::Kind::kText) {
      const std::size_t gap = merge.text.find(' ');
      if (gap == std::string::npos) merge.fail("two tokens");
      ranks_.emplace(std::pair(merge.text.substr(0, gap), merge.text.substr(gap + 1)), rank++);
    } else {
      if (merge.list().size() != 2) merge.fail("two tokens");
      ranks_.emplace(std::pair(merge.items[0].words(), merge.items[1].words()), rank++);
    }
  }
}

void Tokenizer::check_usable() const {
  if (refused_.empty()) return;
  throw UnsupportedError("text cannot be encoded here, because " + refused_ +
                         "; give the prompt's token ids instead of an instruction");
}

std::int32_t Tokenizer::id_of(const std::string& token) const {
  check_usable();
  const auto found = ids_.find(token);
  if (found == ids_.end()) throw InputError("the tokenizer has no token '" + token + "'");
  return found->second;
}

std::vector<std::int32_t> Tokenizer::encode(const std::string& text) const {
  check_usable();
  for (const char c : text) {
    if (static_cast<unsigned char>(c) > 0x7f) {
      throw UnsupportedError(
          "the instruction has letters that are not ASCII; give the prompt's token ids instead");
    }
  }
  std::vector<std::int32_t> ids;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = end_of_word(text, at);
    encode_word(text.substr(at, end - at), ids);
    at = end;
  }
  return ids;
}

void Tokenizer::encode_word(const std::string& word, std::vector<std::int32_t>& ids) const {
  std::vector<std::string> parts;
  for (const char c : word) parts.push_back(letter_of(static_cast<unsigned char>(c)));
  while (parts.size() > 1) {
    int best = std::numeric_limits<int>::max();
    std::size_t at = 0;
    for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
      const auto found = ranks_.find({parts[i], parts[i + 1]});
      if (found == ranks_.end() || found->second >= best) continue;
      best = found->second;
      at = i;
    }
    if (best == std::numeric_limits<int>::max()) break;
    parts[at] += parts[at + 1];
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
  for (const std::string& part : parts) ids.push_back(id_of(part));
}

}  // namespace vlakern
