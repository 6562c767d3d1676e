#if defined(__x86_64__)
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#pragma GCC target("avx2,fma,f16c")
#include "../core/int8_avx2.h"
#include "rows_kernel.h"

namespace sparseq::network {

const Kernels& kernels_avx2() {
  static constexpr Kernels table = make_kernels<Avx2Float>();
  return table;
}

}  // namespace sparseq::network
#endif
