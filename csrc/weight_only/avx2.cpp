#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#pragma GCC target("avx2,fma,f16c")
#include "../core/simd_avx2.h"
#include "../gemm/unroll.h"
#include "weight_only.h"

namespace sparseq::weight_only {
namespace {

constexpr int kOutputs[] = {0, 2, 1, 1, 1};  // measured: with more, gcc 12 spills

SPARSEQ_INLINE inline Vec fma(Vec x, Vec y, Vec z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}

// Without it gcc 12 hoists loads until it runs out of registers, and spills.
SPARSEQ_INLINE inline void pin(Vec& x) { asm volatile("" : "+x"(x.a), "+x"(x.b)); }

inline float sum(Vec x) {
  const __m256 eight = _mm256_add_ps(x.a, x.b);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

struct Base {
  __m256i table;         // the sixteen values of a nibble, as bytes
  __m256i lower, upper;  // where each lane's group is among those of a chunk
  __m256i some;
  int shift;
  explicit Base(const Int4& p) : shift(p.shift) {
    const __m256i q = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    const __m256i eight = _mm256_set1_epi8(p.is_signed ? 8 : 0);
    table = _mm256_sub_epi8(_mm256_xor_si256(q, eight), eight);
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    lower = _mm256_srl_epi32(lane, _mm_cvtsi32_si128(shift));
    upper = _mm256_srl_epi32(_mm256_add_epi32(lane, _mm256_set1_epi32(8)), _mm_cvtsi32_si128(shift));
    some = _mm256_cmpgt_epi32(_mm256_set1_epi32(16 >> shift), lane);
  }
};

SPARSEQ_INLINE inline Vec spread(const float* p, const Base& base) {
  if (base.shift == 0) return Vec::load(p);
  const __m256 some = _mm256_maskload_ps(p, base.some);
  return {_mm256_permutevar8x32_ps(some, base.lower), _mm256_permutevar8x32_ps(some, base.upper)};
}
SPARSEQ_INLINE inline Vec spread(const int32_t* p, const Base& base) {
  if (base.shift == 0) return Vec::load(p);
  const __m256i some = _mm256_maskload_epi32(p, base.some);
  return {_mm256_cvtepi32_ps(_mm256_permutevar8x32_epi32(some, base.lower)),
          _mm256_cvtepi32_ps(_mm256_permutevar8x32_epi32(some, base.upper))};
}

// The nibbles as signed bytes, four to a lane: the even ones, the odd ones.
struct Codes {
  __m256i even[2], odd[2];
  Codes() = default;
  SPARSEQ_INLINE Codes(const uint8_t* p, const Base& base) {
    for (int half = 0; half < 2; ++half) {
      const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p) + half), low = _mm256_set1_epi8(15);
      even[half] = _mm256_shuffle_epi8(base.table, _mm256_and_si256(v, low));
      odd[half] = _mm256_shuffle_epi8(base.table, _mm256_and_si256(_mm256_srli_epi16(v, 4), low));
    }
  }
};

template <int j>
SPARSEQ_INLINE inline __m256 byte_of(__m256i v) {
  return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(v, 24 - 8 * j), 24));
}
template <int j>
SPARSEQ_INLINE inline Vec pick(const Codes& codes, const Base&) {
  const auto& v = j % 2 ? codes.odd : codes.even;
  return {byte_of<j / 2>(v[0]), byte_of<j / 2>(v[1])};
}

// Value i of 8 is in group i / 2, and its position in bits 2 i and 2 i + 1.
struct Picks {
  __m256i a, b;
  Picks() = default;
  SPARSEQ_INLINE explicit Picks(uint32_t word) : a(eight(word)), b(eight(word >> 16)) {}
  SPARSEQ_INLINE static __m256i eight(uint32_t word) {
    const __m256i bits = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
    const __m256i group = _mm256_setr_epi32(0, 0, 4, 4, 0, 0, 4, 4);
    const __m256i shifted = _mm256_srlv_epi32(_mm256_set1_epi32(int(word)), bits);
    return _mm256_or_si256(group, _mm256_and_si256(shifted, _mm256_set1_epi32(3)));
  }
};

// Of 16 columns, the lower four lanes meet the first eight and the upper four the others.
SPARSEQ_INLINE inline __m256 select_eight(Vec x, __m256i picks) {
  return _mm256_blend_ps(_mm256_permutevar8x32_ps(x.a, picks), _mm256_permutevar8x32_ps(x.b, picks), 0xf0);
}
SPARSEQ_INLINE inline Vec select(Vec a, Vec b, const Picks& picks) {
  return {select_eight(a, picks.a), select_eight(b, picks.b)};
}

}  // namespace
}  // namespace sparseq::weight_only

#include "grid.h"

namespace sparseq::weight_only {
namespace {

using Whole = Repeated;

}  // namespace
}  // namespace sparseq::weight_only

#include "kernel.h"

namespace sparseq::weight_only {

const Kernels& kernels_avx2() {
  static constexpr Kernels table = make_kernels(Isa::avx2);
  return table;
}

}  // namespace sparseq::weight_only
#endif
