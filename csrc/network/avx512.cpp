#if defined(__x86_64__)
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#ifndef SPARSEQ_PORTABLE_INTRINSICS  // tests: <immintrin.h> is SIMDe's, for any machine
// gcc 12 warns about its own _mm512_undefined_ps() in every intrinsic
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#include "../core/float_avx512.h"
#include "rows_kernel.h"

namespace sparseq::network {

const Kernels& kernels_avx512() {
  static constexpr Kernels table = make_kernels<Avx512Float>();
  return table;
}

}  // namespace sparseq::network
#endif
