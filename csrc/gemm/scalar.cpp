#include "kernel.h"

namespace sparseq::gemm {

const Kernels& kernels_scalar() {
  static constexpr Kernels table = make_kernels();
  return table;
}

}  // namespace sparseq::gemm
