// The SIMD trait on AVX2 + FMA + F16C: sixteen float lanes in two registers. Include after
// `#pragma GCC target("avx2,fma,f16c")`, with <immintrin.h> included before the pragma.
#pragma once

#include "half.h"

namespace sparseq {
namespace {

struct Mask {
  __m256 a, b;
};

struct Vec {
  static constexpr int width = 16;
  __m256 a, b;

  static Vec set1(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static Vec load(const Half* p) { return {_mm256_cvtph_ps(half_of(p)), _mm256_cvtph_ps(half_of(p + 8))}; }
  static Vec load(const BFloat16* p) { return {widen(half_of(p)), widen(half_of(p + 8))}; }
  static Vec load(const int8_t* p) {
    const __m128i v = half_of(p);
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(v, 8)))};
  }
  static Vec load(const uint8_t* p) {
    const __m128i v = half_of(p);
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(v)),
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(v, 8)))};
  }
  static Vec load(const int32_t* p) {
    const auto* q = reinterpret_cast<const __m256i*>(p);
    return {_mm256_cvtepi32_ps(_mm256_loadu_si256(q)), _mm256_cvtepi32_ps(_mm256_loadu_si256(q + 1))};
  }
  void store(float* p) const {
    _mm256_storeu_ps(p, a);
    _mm256_storeu_ps(p + 8, b);
  }
  void store(Half* p) const {
    put(p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
    put(p + 8, _mm256_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT));
  }
  void store(BFloat16* p) const {
    // packus takes 4 of each operand per 128-bit half; the permutation restores the order
    const __m256i v = _mm256_packus_epi32(narrow(a), narrow(b));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(v, 0xd8));
  }
  // Lanes hold integers in [-128, 255]; the low byte serves int8 and uint8 alike.
  void store(uint8_t* p) const {
    const __m256i byte = _mm256_set1_epi32(0xff);
    const __m256i v = _mm256_packus_epi32(_mm256_and_si256(_mm256_cvttps_epi32(a), byte),
                                          _mm256_and_si256(_mm256_cvttps_epi32(b), byte));
    const __m256i o = _mm256_permute4x64_epi64(v, 0xd8);
    put(p, _mm_packus_epi16(_mm256_castsi256_si128(o), _mm256_extracti128_si256(o, 1)));
  }
  // Lanes hold integers.
  void store(int32_t* p) const {
    auto* q = reinterpret_cast<__m256i*>(p);
    _mm256_storeu_si256(q, _mm256_cvttps_epi32(a));
    _mm256_storeu_si256(q + 1, _mm256_cvttps_epi32(b));
  }

 private:
  template <class T>
  static __m128i half_of(const T* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  template <class T>
  static void put(T* p, __m128i v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), v);
  }
  static __m256 widen(__m128i v) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16)); }
  // float to bfloat16, nearest even, NaN made quiet: the result in the low half of each lane
  static __m256i narrow(__m256 v) {
    const __m256i bits = _mm256_castps_si256(v), top = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, _mm256_or_si256(top, _mm256_set1_epi32(0x40)), nan);
  }
};

inline Vec operator+(Vec x, Vec y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline Vec operator-(Vec x, Vec y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline Vec operator*(Vec x, Vec y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline Vec operator/(Vec x, Vec y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline Vec min(Vec x, Vec y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline Vec max(Vec x, Vec y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline Vec round(Vec x) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}
inline Vec floor(Vec x) {
  constexpr int mode = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}
inline Mask ordered(Vec x) { return {_mm256_cmp_ps(x.a, x.a, _CMP_ORD_Q), _mm256_cmp_ps(x.b, x.b, _CMP_ORD_Q)}; }
inline Mask between(Vec x, Vec low, Vec high) {
  return {_mm256_and_ps(_mm256_cmp_ps(x.a, low.a, _CMP_GE_OQ), _mm256_cmp_ps(x.a, high.a, _CMP_LE_OQ)),
          _mm256_and_ps(_mm256_cmp_ps(x.b, low.b, _CMP_GE_OQ), _mm256_cmp_ps(x.b, high.b, _CMP_LE_OQ))};
}
inline Vec select(Mask m, Vec yes, Vec no) {
  return {_mm256_blendv_ps(no.a, yes.a, m.a), _mm256_blendv_ps(no.b, yes.b, m.b)};
}
inline Vec keep(Mask m, Vec x) { return {_mm256_and_ps(m.a, x.a), _mm256_and_ps(m.b, x.b)}; }

}  // namespace
}  // namespace sparseq
