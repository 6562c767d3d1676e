// The SIMD trait on AVX-512 F/BW/DQ/VL: sixteen float lanes in one register. Include after the target
// pragma, with <immintrin.h> included before it.
#pragma once

#include "half.h"

namespace sparseq {
namespace {

struct Mask {
  __mmask16 bits;
};

struct Vec {
  static constexpr int width = 16;
  __m512 v;

  static Vec set1(float x) { return {_mm512_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const Half* p) { return {_mm512_cvtph_ps(words(p))}; }
  static Vec load(const BFloat16* p) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words(p)), 16))};
  }
  static Vec load(const int8_t* p) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes(p)))}; }
  static Vec load(const uint8_t* p) { return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes(p)))}; }
  static Vec load(const int32_t* p) { return {_mm512_cvtepi32_ps(_mm512_loadu_si512(p))}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(Half* p) const { put(p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)); }
  void store(BFloat16* p) const {
    const __m512i bits = _mm512_castps_si512(v), top = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(top, _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    put(p, _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(nan, rounded, _mm512_or_si512(top, _mm512_set1_epi32(0x40)))));
  }
  // Lanes hold integers in [-128, 255]; the low byte serves int8 and uint8 alike.
  void store(uint8_t* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(v)));
  }
  // Lanes hold integers.
  void store(int32_t* p) const { _mm512_storeu_si512(p, _mm512_cvttps_epi32(v)); }

 private:
  template <class T>
  static __m256i words(const T* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  template <class T>
  static __m128i bytes(const T* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  template <class T>
  static void put(T* p, __m256i x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x);
  }
};

inline Vec operator+(Vec x, Vec y) { return {_mm512_add_ps(x.v, y.v)}; }
inline Vec operator-(Vec x, Vec y) { return {_mm512_sub_ps(x.v, y.v)}; }
inline Vec operator*(Vec x, Vec y) { return {_mm512_mul_ps(x.v, y.v)}; }
inline Vec operator/(Vec x, Vec y) { return {_mm512_div_ps(x.v, y.v)}; }
inline Vec min(Vec x, Vec y) { return {_mm512_min_ps(x.v, y.v)}; }
inline Vec max(Vec x, Vec y) { return {_mm512_max_ps(x.v, y.v)}; }
inline Vec round(Vec x) { return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vec floor(Vec x) { return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}; }
inline Mask ordered(Vec x) { return {_mm512_cmp_ps_mask(x.v, x.v, _CMP_ORD_Q)}; }
inline Mask between(Vec x, Vec low, Vec high) {
  return {_mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(x.v, low.v, _CMP_GE_OQ), x.v, high.v, _CMP_LE_OQ)};
}
inline Vec select(Mask m, Vec yes, Vec no) { return {_mm512_mask_blend_ps(m.bits, no.v, yes.v)}; }
inline Vec keep(Mask m, Vec x) { return {_mm512_maskz_mov_ps(m.bits, x.v)}; }

}  // namespace
}  // namespace sparseq
