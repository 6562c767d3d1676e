// The trait of Winograd's filtering on AVX-512-VNNI. With SPARSEQ_PORTABLE_INTRINSICS the same names come from SIMDe.
#pragma once
#include <cstdint>

#include "../core/int8_avx512.h"
#include "dense24_avx512.h"
#include "winograd_avx2.h"

namespace {

struct Avx512Words {
  using FloatTrait = Avx512Float;
  using Vec = Avx512Vnni::Vec;
  static constexpr int kLanes = 16, kWords = 32;
  static constexpr int64_t kGroup = 32;
#ifdef __SANITIZE_ADDRESS__  // as Avx512Vnni
  static constexpr int kRows = 4;
#else
  static constexpr int kRows = 14;  // of two accumulators each, of 32 registers
#endif
  static constexpr double kDirect = 3.0, kDirect24 = 2.6;  // between Zen 4's 3.4 and 2.5, and Ice Lake's 2.65 and 2.85
  using Narrow = Avx2Words;

  static Vec zero() { return Avx512Vnni::zero(); }
  static Vec load(const void* p) { return SPARSEQ_512(loadu_si512)(p); }
  static void store(void* p, Vec x) { SPARSEQ_512(storeu_si512)(p, x); }
  static auto load32(const void* p) {
#ifdef SPARSEQ_PORTABLE_INTRINSICS
    return simde_mm256_loadu_si256(static_cast<const simde__m256i*>(p));
#else
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
#endif
  }
  static Vec load_u8(const uint8_t* p) {
#ifdef SPARSEQ_PORTABLE_INTRINSICS  // which lacks cvtepu8_epi16
    return SPARSEQ_512(and_si512)(SPARSEQ_512(cvtepi8_epi16)(load32(p)), SPARSEQ_512(set1_epi16)(255));
#else
    return SPARSEQ_512(cvtepu8_epi16)(load32(p));
#endif
  }
  // Of fours of signed bytes the first or the second two.
  template <int Pair>
  static Vec load_pair(const uint8_t* p) {
    typedef int16_t Words __attribute__((vector_size(64)));
    constexpr auto words = [](int four) {  // each byte into the upper half of its word
      return 0x0080 | (4 * four + 2 * Pair) << 8 | (0x0080 | (4 * four + 2 * Pair + 1) << 8) << 16;
    };
    const Vec high = SPARSEQ_512(set4_epi32)(words(3), words(2), words(1), words(0));
    return __builtin_bit_cast(Vec, __builtin_bit_cast(Words, SPARSEQ_512(shuffle_epi8)(load(p), high)) >> 8);
  }
  static sparseq::winograd::Fours expand_sparse24(const sparseq::Tiles& w, int64_t group, uint8_t* to) {
    Expansion24(w, 2 * group, 2).all(to);
    const int64_t tap = kLanes * w.shape.in_channels;
    return {to, 4 * kLanes, tap, 9 * tap};
  }

  static Vec add16(Vec a, Vec b) { return SPARSEQ_512(add_epi16)(a, b); }
  static Vec sub16(Vec a, Vec b) { return SPARSEQ_512(sub_epi16)(a, b); }
  // Modulo 2^32: the compiler's vectors, since SIMDe's sums and products are undefined where they wrap.
  typedef uint32_t Unsigned __attribute__((vector_size(64)));
  static Unsigned unsigned32(Vec a) { return __builtin_bit_cast(Unsigned, a); }
  static Vec add32(Vec a, Vec b) { return __builtin_bit_cast(Vec, unsigned32(a) + unsigned32(b)); }
  static Vec sub32(Vec a, Vec b) { return __builtin_bit_cast(Vec, unsigned32(a) - unsigned32(b)); }
  static Vec mul32(Vec a, uint32_t b) { return __builtin_bit_cast(Vec, unsigned32(a) * b); }
  template <int K>
  static Vec shift_left16(Vec a) {
    return SPARSEQ_512(slli_epi16)(a, K);
  }
  template <int K>
  static Vec shift_right32(Vec a) {
    typedef int32_t Signed __attribute__((vector_size(64)));  // SIMDe 0.7.4 has no srai_epi32
    return __builtin_bit_cast(Vec, __builtin_bit_cast(Signed, a) >> K);
  }
  // One broadcast for two products: Ice Lake loads 512 bits hardly more than once a cycle, and multiplies twice (in L1
  // 340 GMAC/s, 190 by products that broadcast from memory). In assembly, in its place: gcc 12 moves sums once more.
  SPARSEQ_INLINE static void dot(Vec (&sum)[2], const int16_t* pair, const Vec (&w)[2]) {
    const Vec x = Avx512Vnni::broadcast4(reinterpret_cast<const uint8_t*>(pair));
    for (int k = 0; k < 2; ++k) {
#ifndef SPARSEQ_PORTABLE_INTRINSICS
      asm volatile("vpdpwssd %1, %2, %0" : "+v"(sum[k]) : "v"(x), "v"(w[k]));
#else
      sum[k] = SPARSEQ_512(dpwssd_epi32)(sum[k], x, w[k]);
#endif
    }
  }
};

}  // namespace
