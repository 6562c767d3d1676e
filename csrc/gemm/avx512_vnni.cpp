// AVX-512-VNNI: 16 channels per vector. Through SIMDe (tests) the epilogue and the row quantiser, which hold no
// VNNI, take the 256-bit trait.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12: _mm512_undefined_* in its own headers
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <utility>

#include "gemm.h"
#ifdef SPARSEQ_PORTABLE_INTRINSICS
#include <simde/x86/avx512.h>
#pragma GCC target("avx2,fma,f16c")
#else
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
#endif
#include "depthwise_columns_avx512.h"
#include "kernel.h"
#include "micro_dot.h"
#include "winograd_avx512.h"
#include "winograd_kernel.h"

namespace {

struct Avx512 : Avx512Vnni {
  using Columns = ColumnsAvx512;
  using Winograd = WinogradKernel<Avx512Words>;
};

}  // namespace

namespace sparseq {

const Kernels& kernels_avx512_vnni() {
  static const Kernels table = Driver<DotMicro<Avx512>>::kernels("avx512_vnni");
  return table;
}

}  // namespace sparseq
