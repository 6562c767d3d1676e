// The float trait of AVX-512. Include after `#pragma GCC target` with avx512f, avx512bw, avx512dq and avx512vl.
#pragma once
#include <cstdint>

#include "byte_table.h"
#include "half.h"

namespace {

struct Avx512Float {
  static constexpr int kLanes = 16;
  using Float = __m512;
  using Int = __m512i;

  static Float set(float x) { return _mm512_set1_ps(x); }
  static Int set_int(int32_t x) { return _mm512_set1_epi32(x); }
  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static Int load_int(const int32_t* p) { return _mm512_loadu_si512(p); }
  static __m128i load16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static __m256i load32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static Int load_u8(const uint8_t* p) { return _mm512_cvtepu8_epi32(load16(p)); }
  static Int load_s8(const uint8_t* p) { return _mm512_cvtepi8_epi32(load16(p)); }
  static Float load(const sparseq::BFloat16* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load32(p)), 16));
  }
  static Float load(const sparseq::Half* p) { return _mm512_cvtph_ps(load32(p)); }
  static void store(float* p, Float x) { _mm512_storeu_ps(p, x); }
  static void store_int(int32_t* p, Int x) { _mm512_storeu_si512(p, x); }
  static void store_low_bytes(uint8_t* p, Int x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x));
  }
  static void store(sparseq::BFloat16* p, Float x) {
    const __m512i u = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd), 16);
    r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(r));
  }
  static void store(sparseq::Half* p, Float x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  // Of bytes, less a number of at most 8 bits: 2^23 + q is q before the exponent of 2^23, put there by one shuffle.
  struct Offset {
    Float all;
    explicit Offset(int32_t zero) : all(_mm512_set1_ps(0x1p23f + static_cast<float>(zero))) {}
    Float operator()(const uint8_t* p) const {
      const Int fours = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
      const Int all_in_each = _mm512_broadcast_i32x4(load16(p));
      const Int bits = _mm512_mask_shuffle_epi8(_mm512_set1_epi32(0x4b000000), 0x1111111111111111, all_in_each, fours);
      return _mm512_sub_ps(_mm512_castsi512_ps(bits), all);
    }
  };
  static Int sub(Int a, Int b) { return _mm512_sub_epi32(a, b); }
  static Int add(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static Int mul(Int a, Int b) { return _mm512_mullo_epi32(a, b); }
  // a * low half of w + b * high half of w: 8-bit activations, 16-bit weights, exact.
  static Int multiply_pairs(Int a, Int b, Int w) {
    return _mm512_madd_epi16(_mm512_or_si512(a, _mm512_slli_epi32(b, 16)), w);
  }
  // The same for two vectors of channels, added to their sums.
  static void add_pairs(Int (&sum)[2], const uint8_t* a, const uint8_t* b, const int32_t* w) {
    for (int i = 0; i < 2; ++i, a += kLanes, b += kLanes, w += kLanes)
      sum[i] = add(sum[i], multiply_pairs(load_u8(a), load_u8(b), load_int(w)));
  }
  static Float to_float(Int a) { return _mm512_cvtepi32_ps(a); }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }  // a b + c, rounded once
  static Float quotient(Float a, Float, Float inverse, Float rest) {                // see Avx2Float
    return fma(a, inverse, mul(a, rest));
  }
  static Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
  static Float min(Float a, Float b) { return _mm512_min_ps(a, b); }
  static Float nan_to_zero(Float a) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, a, _CMP_ORD_Q), a); }
  static Int round(Float a) { return _mm512_cvtps_epi32(a); }
  static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Int bits(Float a) { return _mm512_castps_si512(a); }
  static Float from_bits(Int a) { return _mm512_castsi512_ps(a); }
  static Int bit_and(Int a, Int b) { return _mm512_and_si512(a, b); }
  static Int bit_or(Int a, Int b) { return _mm512_or_si512(a, b); }
  template <int kBits>
  static Int shift_left(Int a) {
    return _mm512_slli_epi32(a, kBits);
  }
  // Four vectors of integers to bytes: x + zero in 16 and 8 bits, saturated, then bounded. Of 512 bits packs work on
  // quarters, whose order one permutation mends. Two vectors a row, or one.
  struct FourToBytes {
    Int zero, low, high;
    FourToBytes(int32_t zero_, int32_t low_, int32_t high_)
        : zero(_mm512_set1_epi16(static_cast<int16_t>(zero_))),
          low(_mm512_set1_epi8(static_cast<int8_t>(low_))),
          high(_mm512_set1_epi8(static_cast<int8_t>(high_))) {}
    void store(const Int (&x)[4], uint8_t* const (&rows)[2]) const {
      const Int y = bytes(x);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows[0]), _mm512_castsi512_si256(y));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows[1]), _mm512_extracti64x4_epi64(y, 1));
    }
    void store(const Int (&x)[4], uint8_t* const (&rows)[4]) const {
      const Int y = bytes(x);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(rows[0]), _mm512_castsi512_si128(y));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(rows[1]), _mm512_extracti32x4_epi32(y, 1));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(rows[2]), _mm512_extracti32x4_epi32(y, 2));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(rows[3]), _mm512_extracti32x4_epi32(y, 3));
    }

   private:
    Int bytes(const Int (&x)[4]) const {
      const Int order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
      const Int a = _mm512_adds_epi16(_mm512_packs_epi32(x[0], x[1]), zero);
      const Int b = _mm512_adds_epi16(_mm512_packs_epi32(x[2], x[3]), zero);
      const Int y = _mm512_min_epu8(_mm512_max_epu8(_mm512_packus_epi16(a, b), low), high);
      return _mm512_permutexvar_epi32(order, y);
    }
  };
  struct Table : ByteTable {
    static constexpr int kBytes = 64;
    using ByteTable::ByteTable;
    void look_up(const uint8_t* from, uint8_t* to) const {
      const __m512i low = _mm512_loadu_si512(from);
      __m512i index[2] = {low, _mm512_xor_si512(low, _mm512_set1_epi8(-128))};
      __m512i y = _mm512_setzero_si512();
      for (int k = 0; k < 8; ++k)
        for (int h = 0; h < 2; ++h) {
          const __m128i* entries = reinterpret_cast<const __m128i*>(part[h][k]);
          const __m512i each = _mm512_broadcast_i32x4(_mm_load_si128(entries));
          y = _mm512_xor_si512(y, _mm512_shuffle_epi8(each, index[h]));
          index[h] = _mm512_subs_epi8(index[h], _mm512_set1_epi8(16));
        }
      _mm512_storeu_si512(to, y);
    }
  };
};

}  // namespace
