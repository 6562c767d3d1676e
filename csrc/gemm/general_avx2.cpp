#if defined(__x86_64__)
#include <cstdint>
#include <string>
#include <vector>

#pragma GCC target("avx2")
#include "general_kernel.h"

namespace sparseq::gemm::general {

const Kernels& kernels_avx2() {
  static constexpr Kernels table = make_kernels();
  return table;
}

}  // namespace sparseq::gemm::general
#endif
