#include "policy/json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>

#include "common/error.h"

namespace vlakern {
namespace {

constexpr int kMostDepth = 64;
constexpr std::size_t kMostShown = 80;

class Parser {
 public:
  Parser(std::string_view content, const std::string& where, std::size_t most_values)
      : content_(content), where_(where), most_values_(most_values) {}

  Json whole() {
    Json value = any(where_, 0);
    space();
    if (at_ != content_.size()) fail("something follows its value");
    return value;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw InputError(where_ + " is not valid JSON: " + what + " at byte " + std::to_string(at_));
  }

  char peek() const { return at_ < content_.size() ? content_[at_] : '\0'; }

  void space() {
    while (at_ < content_.size() && std::string_view(" \t\r\n").find(content_[at_]) < 4) ++at_;
  }

  bool take(std::string_view word) {
    if (content_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json any(const std::string& where, int depth) {
    if (depth > kMostDepth) fail("it is nested deeper than " + std::to_string(kMostDepth));
    if (++values_ > most_values_) fail("it holds too many values");
    space();
    Json value;
    value.where = where;
    switch (peek()) {
      case '{':
        object(value, depth);
        break;
      case '[':
        list(value, depth);
        break;
      case '"':
        value.kind = Json::Kind::kText;
        value.text = string();
        break;
      default:
        word_or_number(value);
    }
    return value;
  }

  void word_or_number(Json& value) {
    if (take("null")) return;
    if (take("true")) {
      value.kind = Json::Kind::kBool;
      value.flag = true;
    } else if (take("false")) {
      value.kind = Json::Kind::kBool;
    } else {
      number(value);
    }
  }

  void object(Json& value, int depth) {
    value.kind = Json::Kind::kObject;
    std::set<std::string> seen;
    ++at_;
    space();
    if (take("}")) return;
    do {
      space();
      if (peek() != '"') fail("a key is missing");
      std::string key = string();
      if (!seen.insert(key).second)
        fail("the key '" + key.substr(0, kMostShown) + "' is there twice");
      space();
      if (!take(":")) fail("a colon is missing");
      value.fields.emplace_back(key, any(value.where + "." + key, depth + 1));
      space();
    } while (take(","));
    if (!take("}")) fail("an object does not end");
  }

  void list(Json& value, int depth) {
    value.kind = Json::Kind::kList;
    ++at_;
    space();
    if (take("]")) return;
    do {
      value.items.push_back(any(value.where, depth + 1));
      space();
    } while (take(","));
    if (!take("]")) fail("a list does not end");
  }

  void number(Json& value) {
    const std::size_t begin = at_;
    if (peek() == '-') ++at_;
    const std::size_t first = at_;
    digits();
    if (content_[first] == '0' && at_ - first > 1) fail("a number begins with 0");
    bool whole = true;
    if (take(".")) {
      whole = false;
      digits();
    }
    if (peek() == 'e' || peek() == 'E') {
      whole = false;
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      digits();
    }
    const char *from = content_.data() + begin, *to = content_.data() + at_;
    value.kind = Json::Kind::kNumber;
    const auto real = std::from_chars(from, to, value.number);
    if (real.ec != std::errc() || !std::isfinite(value.number)) fail("a number is beyond fp64");
    value.whole = whole && std::from_chars(from, to, value.integer).ec == std::errc();
  }

  void digits() {
    const std::size_t begin = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    if (at_ == begin) fail("a value is missing");
  }

  std::uint32_t hex() {
    std::uint32_t code = 0;
    const char *from = content_.data() + at_, *to = from + std::min<std::size_t>(4, rest());
    const auto read = std::from_chars(from, to, code, 16);
    if (read.ptr != from + 4) fail("an escape is not four hexadecimal digits");
    at_ += 4;
    return code;
  }

  std::size_t rest() const { return content_.size() - at_; }

  void put(std::string& out, std::uint32_t code) const {
    const auto byte = [&out](std::uint32_t value) { out.push_back(static_cast<char>(value)); };
    if (code < 0x80) {
      byte(code);
    } else if (code < 0x800) {
      byte(0xc0 | code >> 6);
      byte(0x80 | (code & 0x3f));
    } else if (code < 0x10000) {
      byte(0xe0 | code >> 12);
      byte(0x80 | (code >> 6 & 0x3f));
      byte(0x80 | (code & 0x3f));
    } else {
      byte(0xf0 | code >> 18);
      byte(0x80 | (code >> 12 & 0x3f));
      byte(0x80 | (code >> 6 & 0x3f));
      byte(0x80 | (code & 0x3f));
    }
  }

  void escape(std::string& out) {
    const char kind = peek();
    ++at_;
    const std::string_view plain = "\"\\/bfnrt", means = "\"\\/\b\f\n\r\t";
    if (const auto i = plain.find(kind); kind != '\0' && i < plain.size()) {
      out.push_back(means[i]);
      return;
    }
    if (kind != 'u') fail("an escape is unknown");
    std::uint32_t code = hex();
    if (code >= 0xd800 && code < 0xdc00 && take("\\u")) {
      const std::uint32_t low = hex();
      if (low < 0xdc00 || low > 0xdfff) fail("half a surrogate pair");
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    } else if (code >= 0xd800 && code <= 0xdfff) {
      fail("half a surrogate pair");
    }
    put(out, code);
  }

  std::string string() {
    std::string out;
    for (++at_; at_ < content_.size();) {
      const char c = content_[at_];
      if (c == '"') {
        ++at_;
        return out;
      }
      if (static_cast<unsigned char>(c) < 0x20) fail("a control character in a text");
      ++at_;
      if (c == '\\') {
        escape(out);
      } else {
        out.push_back(c);
      }
    }
    fail("a text does not end");
  }

  std::string_view content_;
  const std::string& where_;
  const std::size_t most_values_;
  std::size_t at_ = 0, values_ = 0;
};

std::string shown(const Json& value) {
  switch (value.kind) {
    case Json::Kind::kNull:
      return "null";
    case Json::Kind::kBool:
      return value.flag ? "true" : "false";
    case Json::Kind::kNumber:
      return value.whole ? std::to_string(value.integer) : std::to_string(value.number);
    case Json::Kind::kText:
      return "'" + value.text.substr(0, kMostShown) + "'";
    case Json::Kind::kList:
      return "a list of " + std::to_string(value.items.size());
    default:
      return "an object";
  }
}

}  // namespace

void Json::fail(const std::string& expected) const {
  throw InputError(where + ": expected " + expected + ", found " + shown(*this));
}

const Json* Json::find(std::string_view key) const {
  if (kind != Kind::kObject) fail("an object");
  for (const auto& [name, value] : fields) {
    if (name == key) return &value;
  }
  return nullptr;
}

const Json& Json::at(std::string_view key) const {
  const Json* found = find(key);
  if (found == nullptr) throw InputError(where + ": key '" + std::string(key) + "' is missing");
  return *found;
}

const std::vector<Json>& Json::list() const {
  if (kind != Kind::kList) fail("a list");
  return items;
}

const std::string& Json::words() const {
  if (kind != Kind::kText) fail("a text");
  return text;
}

bool Json::boolean() const {
  if (kind != Kind::kBool) fail("true or false");
  return flag;
}

double Json::real() const {
  if (kind != Kind::kNumber) fail("a number");
  return number;
}

std::int64_t Json::count(std::int64_t least, std::int64_t most) const {
  if (kind != Kind::kNumber || !whole || integer < least || integer > most) {
    fail("a whole number from " + std::to_string(least) + " to " + std::to_string(most));
  }
  return integer;
}

int Json::choice(const std::vector<std::string>& known) const {
  const auto found = std::find(known.begin(), known.end(), words());
  if (found != known.end()) return static_cast<int>(found - known.begin());
  std::string all;
  for (const std::string& one : known) all += (all.empty() ? "" : ", ") + one;
  fail("one of " + all);
}

void Json::only(const std::vector<std::string>& known) const {
  if (kind != Kind::kObject) fail("an object");
  for (const auto& [name, value] : fields) {
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      throw InputError(where + ": unknown key '" + name.substr(0, kMostShown) +
                       "'; it was written by another version");
    }
  }
}

Json parse_json(std::string_view content, const std::string& where, std::size_t most_values) {
  return Parser(content, where, most_values).whole();
}

}  // namespace vlakern
