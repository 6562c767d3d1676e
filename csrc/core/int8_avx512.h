// AVX-512-VNNI byte trait. With SPARSEQ_PORTABLE_INTRINSICS the same names come from SIMDe.
#pragma once
#include <cstdint>

#include "../gemm/unroll.h"
#include "names_512.h"
#ifdef SPARSEQ_PORTABLE_INTRINSICS
#include "int8_avx2.h"
#else
#include "float_avx512.h"
#endif

namespace {

#ifdef SPARSEQ_PORTABLE_INTRINSICS
using Avx512Float = Avx2Float;  // the float steps are no VNNI: tests run them as they are
using Vec512 = simde__m512i;
#else
using Vec512 = __m512i;
#endif

struct Avx512Vnni {
  using FloatTrait = Avx512Float;
  static constexpr int kLanes = 16;
#ifdef __SANITIZE_ADDRESS__  // instrumented, sixteen unrolled rows take gcc 12 many minutes to compile
  static constexpr int kDenseRows = 4, kDenseVectors = 2;
  static constexpr int kBroadRows = 2, kBroadVectors = 4;
  static constexpr int kSparseRows = 4, kSparsePanels = 2, kStoredRows = 4, kStridedRows = 4;
#else
  static constexpr int kDenseRows = 12, kDenseVectors = 2;
  static constexpr int kBroadRows = 6, kBroadVectors = 4;
  static constexpr int kSparseRows = 8, kSparsePanels = 2, kStoredRows = 16, kStridedRows = 12;
#endif
  using Vec = Vec512;
  using Acc = Vec512;

  static Acc zero() { return SPARSEQ_512(set1_epi32)(0); }
  static Acc load_acc(const int32_t* p) { return SPARSEQ_512(loadu_si512)(p); }
  static void store_acc(int32_t* p, Acc a) { SPARSEQ_512(storeu_si512)(p, a); }
  static auto load16(const uint8_t* p) {
#ifdef SPARSEQ_PORTABLE_INTRINSICS
    return simde_mm_loadu_si128(p);
#else
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
#endif
  }
  static Vec load(const uint8_t* p) { return SPARSEQ_512(loadu_si512)(p); }
  static void store(uint8_t* p, Vec x) { SPARSEQ_512(storeu_si512)(p, x); }
  // Bits 2 * kStep, + 1 of each byte, + 4 in the upper half of each four.
  template <int kStep>
  static Vec index(Vec positions) {
    const Vec fields = kStep == 0 ? positions : SPARSEQ_512(srli_epi16)(positions, 2 * kStep);
    const Vec kept = SPARSEQ_512(and_si512)(fields, SPARSEQ_512(set1_epi8)(3));
    return SPARSEQ_512(or_si512)(kept, SPARSEQ_512(set1_epi32)(0x04040000));
  }
  static Vec broadcast4(const uint8_t* p) {
    int32_t word;
    __builtin_memcpy(&word, p, 4);
    return SPARSEQ_512(set1_epi32)(word);
  }
  static Vec broadcast8(const uint8_t* p) {
    int64_t word;
    __builtin_memcpy(&word, p, 8);
    return SPARSEQ_512(set1_epi64)(word);
  }
  static Vec shuffle(Vec x, Vec index) { return SPARSEQ_512(shuffle_epi8)(x, index); }
  SPARSEQ_INLINE static void dot(Acc& acc, Vec a, Vec w) {
#ifndef SPARSEQ_PORTABLE_INTRINSICS
    asm volatile("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(w));  // in its place, in order: as Avx2Bytes::pin
#else
    acc = SPARSEQ_512(dpbusd_epi32)(acc, a, w);
#endif
  }
};

}  // namespace
