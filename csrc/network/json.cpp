#include "json.h"

#include <algorithm>
#include <charconv>

#include "fail.h"

namespace sparseq::network {
namespace {

constexpr int kDepth = 8;  // programs are four deep; the parser calls itself

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Json whole() {
    Json result = value(0);
    space();
    if (at_ != text_.size()) wrong("the text's end");
    return result;
  }

 private:
  [[noreturn]] void wrong(const char* expected) const {
    fail("program must be JSON: expected ", expected, " at character ", at_);
  }
  void space() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
  }
  bool take(char wanted) {
    space();
    if (at_ == text_.size() || text_[at_] != wanted) return false;
    ++at_;
    return true;
  }
  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  std::string string() {
    if (!take('"')) wrong("a string");
    const size_t begin = at_;
    for (; at_ < text_.size() && text_[at_] != '"'; ++at_)
      if (text_[at_] == '\\' || static_cast<unsigned char>(text_[at_]) < ' ') wrong("a string without escapes");
    if (at_ == text_.size()) wrong("the string's end");
    return std::string(text_.substr(begin, at_++ - begin));
  }

  Json number() {
    const size_t begin = at_;
    const auto digits = [&] {
      const size_t first = at_;
      while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
      if (at_ == first) wrong("a digit");
    };
    take("-");
    if (!take("0")) digits();
    bool integer = true;
    if (take(".")) integer = false, digits();
    if (take("e") || take("E")) {
      integer = false;
      if (!take("-")) take("+");
      digits();
    }
    const char *first = text_.data() + begin, *last = text_.data() + at_;
    int64_t whole = 0;
    if (integer && std::from_chars(first, last, whole).ec == std::errc()) return {whole};
    double real = 0;
    if (integer || std::from_chars(first, last, real).ec != std::errc()) wrong("a number within range before this");
    return {real};
  }

  Json value(int depth) {
    if (depth > kDepth) wrong("fewer nested values");
    space();
    if (at_ == text_.size()) wrong("a value");
    if (text_[at_] == '"') return {string()};
    if (take("true")) return {true};
    if (take("false")) return {false};
    if (take("null")) return {nullptr};
    if (take('[')) {
      Json::List list;
      if (take(']')) return {list};
      do list.push_back(value(depth + 1));
      while (take(','));
      if (!take(']')) wrong("a comma or ]");
      return {std::move(list)};
    }
    if (!take('{')) return number();
    Json::Members members;
    if (take('}')) return {members};
    do {
      if (members.size() == 64) wrong("fewer members");
      std::string name = string();
      if (std::any_of(members.begin(), members.end(), [&](const auto& m) { return m.first == name; }))
        fail("program must name each member once, got ", name, " twice");
      if (!take(':')) wrong("a colon");
      Json of_name = value(depth + 1);
      members.emplace_back(std::move(name), std::move(of_name));
    } while (take(','));
    if (!take('}')) wrong("a comma or }");
    return {std::move(members)};
  }

  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

Json parse_json(std::string_view text) { return Parser(text).whole(); }

}  // namespace sparseq::network
