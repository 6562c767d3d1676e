#include "../core/int8_scalar.h"
#include "rows_kernel.h"

namespace sparseq::network {

const Kernels& kernels_scalar() {
  static constexpr Kernels table = make_kernels<ScalarFloat>();
  return table;
}

}  // namespace sparseq::network
