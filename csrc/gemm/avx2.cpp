#if defined(__x86_64__)
#include <cstdint>
#include <string>
#include <vector>

#pragma GCC target("avx2")
#include "kernel.h"

namespace sparseq::gemm {

const Kernels& kernels_avx2() {
  static constexpr Kernels table = make_kernels();
  return table;
}

}  // namespace sparseq::gemm
#endif
