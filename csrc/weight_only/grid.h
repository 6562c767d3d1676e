// A chunk's scales and zero points where a nibble is decoded to a float first: Base, Codes and Vec are the ISA
// file's, with pick<j>(codes, base) the lanes' j-th nibble as a float.
#pragma once

#include "weight_only.h"

namespace sparseq::weight_only {
namespace {

template <bool with_zero>
struct Spread {
  static constexpr Groups kind = Groups::spread;
  const Base* base;
  Vec scale, zero;

  Spread() = default;
  SPARSEQ_INLINE Spread(const Base& b, Vec s, Vec z) : base(&b), scale(s), zero(z) {}
  SPARSEQ_INLINE Spread(const Base& b, const float* s, const int32_t* z) : base(&b), scale(spread(s, b)) {
    if (with_zero) zero = spread(z, b);
  }
  template <int j>
  SPARSEQ_INLINE Vec weight(const Codes& codes) const {
    const Vec q = pick<j>(codes, *base);
    return (with_zero ? q - zero : q) * scale;
  }
};

// A chunk of one scale, where that is no table.
struct Repeated : Spread<true> {
  static constexpr Groups kind = Groups::whole;
  Repeated() = default;
  SPARSEQ_INLINE Repeated(const Base& b, const float* s, const int32_t* z)
      : Spread<true>(b, Vec::set1(*s), Vec::set1(z ? float(*z) : 0.0f)) {}
};

}  // namespace
}  // namespace sparseq::weight_only
