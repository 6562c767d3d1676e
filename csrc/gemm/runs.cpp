#include "runs.h"

namespace sparseq::gemm {

Runs::Runs(const Pixels& p, int most)
    : sizes{p.width, p.height, p.batch}, strides{p.step, p.line, p.image}, stride(p.channels) {
  int d = 0;
  for (; d < most; ++d) {
    if (sizes[d] == 1) continue;
    if (length > 1 && strides[d] != stride * length) break;
    if (length == 1) stride = strides[d];
    length *= sizes[d];
  }
  outer = d;
  for (; d < 3; ++d) count *= sizes[d];
}

int64_t Runs::offset(int64_t run) const {
  int64_t sum = 0;
  for (int d = outer; d < 3; ++d) {
    sum += run % sizes[d] * strides[d];
    run /= sizes[d];
  }
  return sum;
}

}  // namespace sparseq::gemm
