// JSON, read strictly: every key once, finite numbers, bounded depth; and typed access that says
// where a value is that does not fit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace vlakern {

class Json {
 public:
  enum class Kind { kNull, kBool, kNumber, kText, kList, kObject };

  Kind kind = Kind::kNull;
  bool flag = false;
  bool whole = false;  // a number without fraction or exponent that fits 64 bits
  std::int64_t integer = 0;
  double number = 0.0;
  std::string text;
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> fields;
  std::string where;  // set by the reader of a file

  // Null where an object has no such key.
  const Json* find(std::string_view key) const;

  // Each raises InputError with this value's place and what was expected.
  const Json& at(std::string_view key) const;
  const std::vector<Json>& list() const;
  const std::string& words() const;
  bool boolean() const;
  double real() const;
  std::int64_t count(std::int64_t least, std::int64_t most) const;
  // The index among `known`.
  int choice(const std::vector<std::string>& known) const;
  // Refuses keys that are not known.
  void only(const std::vector<std::string>& known) const;

  [[noreturn]] void fail(const std::string& expected) const;
};

constexpr std::size_t kMostValues = 200'000;

// InputError names `where` and what is wrong.
Json parse_json(std::string_view content, const std::string& where,
                std::size_t most_values = kMostValues);

}  // namespace vlakern
