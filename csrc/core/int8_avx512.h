// AVX-512-VNNI byte trait. With SPARSEQ_PORTABLE_INTRINSICS the same names come from SIMDe.
#pragma once
#include <cstdint>

#include "../gemm/unroll.h"

namespace {

#ifdef SPARSEQ_PORTABLE_INTRINSICS
#define SPARSEQ_512(name) simde_mm512_##name
#define SPARSEQ_VEC512 simde__m512i
#else
#define SPARSEQ_512(name) _mm512_##name
#define SPARSEQ_VEC512 __m512i
#endif

struct Avx512Vnni {
  using FloatTrait = Avx2Float;
  static constexpr int kLanes = 16;
  static constexpr int kDenseRows = 12, kDenseVectors = 2, kSparseRows = 12;
  using Vec = SPARSEQ_VEC512;
  using Acc = SPARSEQ_VEC512;

  static Acc zero() { return SPARSEQ_512(set1_epi32)(0); }
  static Acc load_acc(const int32_t* p) { return SPARSEQ_512(loadu_si512)(p); }
  static void store_acc(int32_t* p, Acc a) { SPARSEQ_512(storeu_si512)(p, a); }
  static Vec load(const uint8_t* p) { return SPARSEQ_512(loadu_si512)(p); }
  static void store(uint8_t* p, Vec x) { SPARSEQ_512(storeu_si512)(p, x); }
  static Vec low_nibbles(Vec x) { return SPARSEQ_512(and_si512)(x, SPARSEQ_512(set1_epi8)(15)); }
  static Vec high_nibbles(Vec x) { return low_nibbles(SPARSEQ_512(srli_epi16)(x, 4)); }
  static Vec broadcast4(const uint8_t* p) {
    int32_t word;
    __builtin_memcpy(&word, p, 4);
    return SPARSEQ_512(set1_epi32)(word);
  }
  static Vec broadcast16(const uint8_t* p) {
#ifdef SPARSEQ_PORTABLE_INTRINSICS
    return simde_mm512_broadcast_i32x4(simde_mm_loadu_si128(reinterpret_cast<const simde__m128i*>(p)));
#else
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#endif
  }
  static Vec shuffle(Vec x, Vec index) { return SPARSEQ_512(shuffle_epi8)(x, index); }
  SPARSEQ_INLINE static void dot(Acc& acc, Vec a, Vec w) {
    acc = SPARSEQ_512(dpbusd_epi32)(acc, a, w);
#ifndef SPARSEQ_PORTABLE_INTRINSICS
    asm volatile("" : "+v"(acc));  // as Avx2Bytes::pin
#endif
  }
};

#undef SPARSEQ_512
#undef SPARSEQ_VEC512

}  // namespace
