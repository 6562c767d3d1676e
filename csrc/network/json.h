// The JSON that programs are written in, read strictly: no repeated names, no escapes in strings, no NaN.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace sparseq::network {

struct Json {
  using List = std::vector<Json>;
  using Members = std::vector<std::pair<std::string, Json>>;  // in the text's order
  std::variant<std::nullptr_t, bool, int64_t, double, std::string, List, Members> value;

  template <class T>
  const T* as() const {
    return std::get_if<T>(&value);
  }
};

// Throws std::invalid_argument where the text isn't one such value.
Json parse_json(std::string_view text);

}  // namespace sparseq::network
