#if defined(__x86_64__)
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

// gcc 12 warns about its own _mm512_undefined_ps() in every intrinsic
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "../core/simd_avx512.h"
#include "kernel.h"

namespace sparseq::affine {

const Kernels& kernels_avx512() {
  static constexpr Kernels table = make_kernels(Isa::avx512);
  return table;
}

}  // namespace sparseq::affine
#endif
