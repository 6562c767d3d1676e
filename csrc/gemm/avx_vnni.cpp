// AVX-VNNI: one vpdpbusd, exact for all weights, instead of vpmaddubsw + vpmaddwd + vpaddd.
// SPARSEQ_PORTABLE_INTRINSICS (tests on machines without it) takes that instruction from SIMDe.
#include <immintrin.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <utility>

#include "gemm.h"
#ifdef SPARSEQ_PORTABLE_INTRINSICS
#include <simde/x86/avx512/dpbusd.h>
#pragma GCC target("avx2,fma,f16c")
#else
#pragma GCC target("avx2,fma,f16c,avxvnni")
#endif
#include "../core/int8_avx2.h"
#include "depthwise_columns.h"
#include "kernel.h"
#include "micro_dot.h"

namespace {

struct AvxVnni : Avx2Bytes {
  using Columns = ColumnsAvx2;
  static constexpr int kDenseRows = 6, kDenseVectors = 2, kSparseRows = 8;
  SPARSEQ_INLINE static void dot(Acc& acc, Vec a, Vec w) {
#ifdef SPARSEQ_PORTABLE_INTRINSICS
    // SIMDe was read before the target pragma, so that its vector is a type of its own: same bits.
    const auto to_simde = [](Vec v) { return __builtin_bit_cast(simde__m256i, v); };
    acc = __builtin_bit_cast(Vec, simde_mm256_dpbusd_epi32(to_simde(acc), to_simde(a), to_simde(w)));
#else
    acc = _mm256_dpbusd_avx_epi32(acc, a, w);
#endif
    pin(acc);
  }
};

}  // namespace

namespace sparseq {

const Kernels& kernels_avx_vnni() {
  static const Kernels table = Driver<DotMicro<AvxVnni>>::kernels("avx_vnni");
  return table;
}

}  // namespace sparseq
