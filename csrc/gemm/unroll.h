// Compile-time loops, so that arrays of registers are indexed by constants and stay in registers.
#pragma once
#include <utility>

#define SPARSEQ_INLINE __attribute__((always_inline))

namespace {

template <int N, class F>
SPARSEQ_INLINE inline void unroll(F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>)
      SPARSEQ_INLINE { (f(std::integral_constant<int, I>{}), ...); }(std::make_integer_sequence<int, N>{});
}

}  // namespace
