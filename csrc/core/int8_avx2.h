// AVX2 traits. Include after `#pragma GCC target("avx2,fma,f16c")` or stronger.
#pragma once
#include <cstdint>

#include "byte_table.h"
#include "half.h"

namespace {

struct Avx2Float {
  static constexpr int kLanes = 8;
  using Float = __m256;
  using Int = __m256i;

  static Float set(float x) { return _mm256_set1_ps(x); }
  static Int set_int(int32_t x) { return _mm256_set1_epi32(x); }
  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static Int load_int(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static __m128i load8(const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }
  static Int load_u8(const uint8_t* p) { return _mm256_cvtepu8_epi32(load8(p)); }
  static Int load_s8(const uint8_t* p) { return _mm256_cvtepi8_epi32(load8(p)); }
  static __m128i load16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static Float load(const sparseq::BFloat16* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(p)), 16));
  }
  static Float load(const sparseq::Half* p) { return _mm256_cvtph_ps(load16(p)); }
  static void store(float* p, Float x) { _mm256_storeu_ps(p, x); }
  static void store_int(int32_t* p, Int x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
  static void store_low_bytes(uint8_t* p, Int x) {
    const __m256i pick =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
    const __m256i four = _mm256_shuffle_epi8(x, pick);
    const __m128i eight = _mm_unpacklo_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), eight);
  }
  static void store_low_bytes(uint8_t* p, Int x, Int y) {  // of integers that 16 bits hold
    const __m256i pick =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, -1, -1, -1, -1, -1, -1, -1, -1));
    const __m256i sixteen = _mm256_shuffle_epi8(_mm256_packs_epi32(x, y), pick);
    const __m128i low = _mm256_castsi256_si128(sixteen), high = _mm256_extracti128_si256(sixteen, 1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_unpacklo_epi32(low, high));
  }
  static void store(sparseq::BFloat16* p, Float x) {
    const __m256i u = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc0), nan);
    const __m128i h = _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), h);
  }
  static void store(sparseq::Half* p, Float x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  struct Offset {  // float of bytes less a number
    Int zero;
    explicit Offset(int32_t zero_) : zero(set_int(zero_)) {}
    Float operator()(const uint8_t* p) const { return to_float(sub(load_u8(p), zero)); }
  };
  static Int sub(Int a, Int b) { return _mm256_sub_epi32(a, b); }
  static Int add(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Int mul(Int a, Int b) { return _mm256_mullo_epi32(a, b); }
  // a * low half of w + b * high half of w: 8-bit activations, 16-bit weights, exact.
  static Int multiply_pairs(Int a, Int b, Int w) {
    return _mm256_madd_epi16(_mm256_or_si256(a, _mm256_slli_epi32(b, 16)), w);
  }
  // Of 8 bytes and 8 more in each lane: 16 bits each, in turns; the low four of both in the low lane.
  static __m256i interleave() {
    return _mm256_setr_epi8(0, -1, 8, -1, 1, -1, 9, -1, 2, -1, 10, -1, 3, -1, 11, -1,  //
                            4, -1, 12, -1, 5, -1, 13, -1, 6, -1, 14, -1, 7, -1, 15, -1);
  }
  // The same for two vectors of channels, added to their sums. In-lane shuffles of both loads, which are broadcast:
  // those that cross lanes (vpmovzxbw) are two operations each (Zen 3).
  static void add_pairs(Int (&sum)[2], const uint8_t* a, const uint8_t* b, const int32_t* w) {
    const __m256i x = _mm256_broadcastsi128_si256(load16(a)), y = _mm256_broadcastsi128_si256(load16(b));
    const Int low = _mm256_shuffle_epi8(_mm256_unpacklo_epi64(x, y), interleave());
    const Int high = _mm256_shuffle_epi8(_mm256_unpackhi_epi64(x, y), interleave());
    sum[0] = add(sum[0], _mm256_madd_epi16(low, load_int(w)));
    sum[1] = add(sum[1], _mm256_madd_epi16(high, load_int(w + kLanes)));
  }
  static Float to_float(Int a) { return _mm256_cvtepi32_ps(a); }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm256_div_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }  // a b + c, rounded once
  // a / b by b's inverse, rounded to nearest, and what that lacks: a inverse + a rest, in which only the sum's rounding
  // counts (Brisebarre and Muller, Correctly rounded multiplication by arbitrary precision constants, 2008). Equal to
  // the division wherever a step of 8 bits ends: for every significand of b, the three a nearest to each such end were
  // compared (1.3e10 quotients).
  static Float quotient(Float a, Float, Float inverse, Float rest) { return fma(a, inverse, mul(a, rest)); }
  static Float max(Float a, Float b) { return _mm256_max_ps(a, b); }
  static Float min(Float a, Float b) { return _mm256_min_ps(a, b); }
  static Float nan_to_zero(Float a) { return _mm256_and_ps(a, _mm256_cmp_ps(a, a, _CMP_ORD_Q)); }
  static Int round(Float a) { return _mm256_cvtps_epi32(a); }
  static Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Int bits(Float a) { return _mm256_castps_si256(a); }
  static Float from_bits(Int a) { return _mm256_castsi256_ps(a); }
  static Int bit_and(Int a, Int b) { return _mm256_and_si256(a, b); }
  static Int bit_or(Int a, Int b) { return _mm256_or_si256(a, b); }
  template <int kBits>
  static Int shift_left(Int a) {
    return _mm256_slli_epi32(a, kBits);
  }
  struct Table : ByteTable {
    static constexpr int kBytes = 32;
    using ByteTable::ByteTable;
    void look_up(const uint8_t* from, uint8_t* to) const {
      const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
      __m256i index[2] = {low, _mm256_xor_si256(low, _mm256_set1_epi8(-128))};
      __m256i y = _mm256_setzero_si256();
      for (int k = 0; k < 8; ++k)
        for (int h = 0; h < 2; ++h) {
          const __m128i* entries = reinterpret_cast<const __m128i*>(part[h][k]);
          const __m256i each = _mm256_broadcastsi128_si256(_mm_load_si128(entries));
          y = _mm256_xor_si256(y, _mm256_shuffle_epi8(each, index[h]));
          index[h] = _mm256_subs_epi8(index[h], _mm256_set1_epi8(16));
        }
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), y);
    }
  };
};

// What the AVX2 and AVX-VNNI micro-kernels share; each adds its own way to multiply.
struct Avx2Bytes {
  using FloatTrait = Avx2Float;
  static constexpr int kLanes = 8;
  using Vec = __m256i;
  using Acc = __m256i;

  static const __m256i* vec(const void* p) { return static_cast<const __m256i*>(p); }
  static Acc zero() { return _mm256_setzero_si256(); }
  static Acc load_acc(const int32_t* p) { return _mm256_loadu_si256(vec(p)); }
  static void store_acc(int32_t* p, Acc a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
  static Vec load(const uint8_t* p) { return _mm256_load_si256(vec(p)); }
  static void store(uint8_t* p, Vec x) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), x); }
  static Vec low_nibbles(Vec x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
  static Vec high_nibbles(Vec x) { return low_nibbles(_mm256_srli_epi16(x, 4)); }
  static Vec broadcast4(const uint8_t* p) {
    int32_t word;
    __builtin_memcpy(&word, p, 4);
    return _mm256_set1_epi32(word);
  }
  // Bits 2 * kStep, + 1 of each byte, + 4 in the upper half of each four.
  template <int kStep>
  static Vec index(Vec positions) {
    const Vec fields = kStep == 0 ? positions : _mm256_srli_epi16(positions, 2 * kStep);
    return _mm256_or_si256(_mm256_and_si256(fields, _mm256_set1_epi8(3)), _mm256_set1_epi32(0x04040000));
  }
  static Vec broadcast8(const uint8_t* p) {
    int64_t word;
    __builtin_memcpy(&word, p, 8);
    return _mm256_set1_epi64x(word);
  }
  static Vec broadcast16(const uint8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Vec shuffle(Vec x, Vec index) { return _mm256_shuffle_epi8(x, index); }
  // An empty asm: it keeps the accumulator in its register and the rows in the order written. Without it
  // gcc 12 hoists every row's broadcast, runs out of registers and spills (measured: half the speed).
  static void pin(Acc& acc) {
#ifndef SPARSEQ_PORTABLE_INTRINSICS
    asm volatile("" : "+x"(acc));
#else
    (void)acc;
#endif
  }
  // The sum in assembly, in its place: where no register is free gcc 12 moves each sum once more, and hoists loads of
  // weights until it spills.
  __attribute__((always_inline)) static void accumulate(Acc& acc, Vec products) {
#ifndef SPARSEQ_PORTABLE_INTRINSICS
    asm volatile("vpaddd %1, %0, %0" : "+x"(acc) : "x"(products));
#else
    acc = _mm256_add_epi32(acc, products);
#endif
  }
};

}  // namespace
