// The scalar table: runs anywhere, and is the definition that the other ISAs are tested against.
#include <utility>

#include "gemm.h"
//
#include "../core/int8_scalar.h"
#include "kernel.h"
#include "micro_dot.h"

namespace sparseq {

const Kernels& kernels_scalar() {
  static const Kernels table = Driver<DotMicro<ScalarDot>>::kernels("scalar");
  return table;
}

}  // namespace sparseq
