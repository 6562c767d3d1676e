// gcc 12 warns about its own _mm512_undefined_ps() in every intrinsic
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "../core/simd_avx512.h"
#include "../gemm/unroll.h"
#include "weight_only.h"

namespace sparseq::weight_only {
namespace {

constexpr int kOutputs[] = {0, 4, 4, 4, 4};

SPARSEQ_INLINE inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }

// Without it gcc 12 hoists loads until it runs out of registers, and spills.
SPARSEQ_INLINE inline void pin(Vec& x) { asm volatile("" : "+v"(x.v)); }

inline float sum(Vec x) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

struct Base {
  Vec table;      // the sixteen values of a nibble
  __m512i lanes;  // where each lane's group is among those of a chunk
  __mmask16 some;
  int shift;
  explicit Base(const Int4& p) : some(__mmask16((1u << (16 >> p.shift)) - 1)), shift(p.shift) {
    const __m512i q = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i eight = _mm512_set1_epi32(p.is_signed ? 8 : 0);
    table = {_mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_xor_si512(q, eight), eight))};
    lanes = _mm512_srl_epi32(q, _mm_cvtsi32_si128(shift));
  }
};

SPARSEQ_INLINE inline Vec spread(const float* p, const Base& base) {
  return {_mm512_permutexvar_ps(base.lanes, _mm512_maskz_loadu_ps(base.some, p))};
}
SPARSEQ_INLINE inline Vec spread(const int32_t* p, const Base& base) {
  return {_mm512_cvtepi32_ps(_mm512_permutexvar_epi32(base.lanes, _mm512_maskz_loadu_epi32(base.some, p)))};
}

struct Codes {
  __m512i v;
  Codes() = default;
  SPARSEQ_INLINE Codes(const uint8_t* p, const Base&) : v(_mm512_loadu_si512(p)) {}
};

// vpermps reads the low four bits of an index: the nibbles above need no mask.
template <int j>
SPARSEQ_INLINE inline Vec look_up(const Codes& codes, Vec table) {
  return {_mm512_permutexvar_ps(j ? _mm512_srli_epi32(codes.v, 4 * j) : codes.v, table.v)};
}
template <int j>
SPARSEQ_INLINE inline Vec pick(const Codes& codes, const Base& base) {
  return look_up<j>(codes, base.table);
}

}  // namespace
}  // namespace sparseq::weight_only

#include "grid.h"

namespace sparseq::weight_only {
namespace {

// A table that has the scale in it: a weight is one shift and one permutation.
struct Whole {
  static constexpr Groups kind = Groups::whole;
  Vec table;
  Whole() = default;
  SPARSEQ_INLINE Whole(const Base& base, const float* scale, const int32_t* zero)
      : table((base.table - Vec::set1(zero ? float(*zero) : 0.0f)) * Vec::set1(*scale)) {}
  template <int j>
  SPARSEQ_INLINE Vec weight(const Codes& codes) const {
    return look_up<j>(codes, table);
  }
};

// Value i of 16 is in group i / 2, and its position in bits 2 i and 2 i + 1.
struct Picks {
  __m512i v;
  Picks() = default;
  SPARSEQ_INLINE explicit Picks(uint32_t word) {
    const __m512i bits = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i group = _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28);
    const __m512i shifted = _mm512_srlv_epi32(_mm512_set1_epi32(int(word)), bits);
    v = _mm512_ternarylogic_epi32(group, shifted, _mm512_set1_epi32(3), 0xf8);  // group | (shifted & 3)
  }
};

SPARSEQ_INLINE inline Vec select(Vec a, Vec b, const Picks& picks) {
  return {_mm512_permutex2var_ps(a.v, picks.v, b.v)};
}

}  // namespace
}  // namespace sparseq::weight_only

#include "kernel.h"

namespace sparseq::weight_only {

const Kernels& kernels_avx512() {
  static constexpr Kernels table = make_kernels(Isa::avx512);
  return table;
}

}  // namespace sparseq::weight_only
#endif
