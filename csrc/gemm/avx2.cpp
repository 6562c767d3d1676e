// Every outside header comes before the target pragma: nothing with external linkage may be compiled for AVX2.
#include <immintrin.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <utility>

#include "gemm.h"

#pragma GCC target("avx2,fma,f16c")
#include "kernel.h"
#include "micro_avx2.h"

namespace sparseq {

const Kernels& kernels_avx2() {
  static const Kernels table = Driver<Avx2Micro>::kernels("avx2");
  return table;
}

}  // namespace sparseq
