// Refusals: one sentence each, a ValueError in Python.
#pragma once

#include <sstream>
#include <stdexcept>

namespace sparseq::network {

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) fail(parts...);
}

}  // namespace sparseq::network
