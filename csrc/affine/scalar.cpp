#include <cmath>
#include <limits>

#include "../core/simd_scalar.h"
#include "kernel.h"

namespace sparseq::affine {

const Kernels& kernels_scalar() {
  static constexpr Kernels table = make_kernels(Isa::scalar);
  return table;
}

}  // namespace sparseq::affine
