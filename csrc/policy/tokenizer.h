// Text to token ids by a byte-level BPE of the tokenizers library's tokenizer.json, of ASCII text.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

namespace vlakern {

class Tokenizer {
 public:
  // A file of another kind is no error until text is to be encoded. InputError: it is damaged, or
  // has ids that are not below `vocab`.
  Tokenizer(const std::string& directory, std::int64_t vocab);

  // UnsupportedError: another kind of tokenizer, or letters that are not ASCII.
  std::vector<std::int32_t> encode(const std::string& text) const;
  // Of a token by its name; UnsupportedError or InputError where there is none.
  std::int32_t id_of(const std::string& token) const;

 private:
  void check_usable() const;
  void encode_word(const std::string& word, std::vector<std::int32_t>& ids) const;

  std::string refused_;  // why it cannot be used, empty if it can
  std::map<std::string, std::int32_t> ids_;
  std::map<std::pair<std::string, std::string>, int> ranks_;  // of merges
};

}  // namespace vlakern
