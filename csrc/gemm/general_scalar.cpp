#include "general_kernel.h"

namespace sparseq::gemm::general {

const Kernels& kernels_scalar() {
  static constexpr Kernels table = make_kernels();
  return table;
}

}  // namespace sparseq::gemm::general
