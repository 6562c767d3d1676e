// 16-bit floats as plain bits, with portable conversions: what scalar code and tails use.
// Everything has internal linkage: each ISA file gets its own copy, compiled for its own target.
#pragma once

#include <cstdint>
#include <cstring>

namespace sparseq {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

namespace {

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float to_float(float value) { return value; }

inline float to_float(BFloat16 value) { return as_float(uint32_t(value.bits) << 16); }

inline float to_float(Half value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16, magnitude = value.bits & 0x7fff;
  if (magnitude >= 0x7c00) {  // inf stays inf; NaN keeps its payload and becomes quiet, as vcvtph2ps does
    const uint32_t quiet = magnitude > 0x7c00 ? 0x400000u : 0u;
    return as_float(sign | 0x7f800000u | ((magnitude & 0x3ff) << 13) | quiet);
  }
  // Normal and subnormal alike: place the bits as a float and undo the bias by an exact product.
  return as_float(sign | as_bits(as_float(magnitude << 13) * 0x1p112f));
}

template <class T>
inline T from_float(float value);

template <>
inline float from_float<float>(float value) {
  return value;
}

template <>
inline BFloat16 from_float<BFloat16>(float value) {
  const uint32_t bits = as_bits(value);
  if (value != value) return {uint16_t((bits >> 16) | 0x40)};
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

template <>
inline Half from_float<Half>(float value) {
  const uint32_t bits = as_bits(value), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return {uint16_t(sign | 0x7e00 | ((magnitude >> 13) & 0x3ff))};
  if (magnitude >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // rounds to 65536 or more: inf
  if (magnitude < 0x38800000) {  // subnormal in half: adding 0.5 rounds to even at 2^-24
    return {uint16_t(sign | (as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u))};
  }
  return {uint16_t(sign | ((magnitude - 0x38000000u + 0xfff + ((magnitude >> 13) & 1)) >> 13))};
}

}  // namespace
}  // namespace sparseq
