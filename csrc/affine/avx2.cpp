#if defined(__x86_64__)
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#pragma GCC target("avx2,fma,f16c")
#include "../core/simd_avx2.h"
#include "kernel.h"

namespace sparseq::affine {

const Kernels& kernels_avx2() {
  static constexpr Kernels table = make_kernels(Isa::avx2);
  return table;
}

}  // namespace sparseq::affine
#endif
