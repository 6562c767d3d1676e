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
#include "depthwise_columns.h"
#include "kernel.h"
#include "micro_dot.h"
#include "winograd_avx2.h"
#include "winograd_kernel.h"

namespace {

struct AvxVnniWords : Avx2Words {
  static constexpr double kDirect = 5.4, kDirect24 = 2.9;
  using Narrow = AvxVnniWords;
#ifndef SPARSEQ_PORTABLE_INTRINSICS
  SPARSEQ_INLINE static void dot(Vec (&sum)[2], const int16_t* pair, const Vec (&w)[2]) {
    const Vec x = broadcast_pair(pair);
    for (int k = 0; k < 2; ++k) {
      sum[k] = _mm256_dpwssd_avx_epi32(sum[k], x, w[k]);
      Avx2Bytes::pin(sum[k]);
    }
  }
#endif
};

struct AvxVnni : Avx2Bytes {
  using Columns = ColumnsAvx2;
  using Winograd = WinogradKernel<AvxVnniWords>;
  static constexpr int kDenseRows = 6, kDenseVectors = 2;
  static constexpr int kBroadRows = 0, kBroadVectors = 0;
  static constexpr int kSparseRows = 8, kSparsePanels = 1, kStoredRows = 0, kStridedRows = 8;
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
