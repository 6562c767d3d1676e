#include "runs.h"

#include <algorithm>

namespace sparseq::gemm {
namespace {

constexpr int64_t kBlock = 16384;  // elements of one task: its bytes stay in L1 while they are transposed

}  // namespace

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

Conversion::Conversion(const RowQuantizer& q, const Runs& r, int64_t element_size)
    : whole(q), runs(r), element(element_size), image(runs.length * q.output_stride) {
  whole.input_stride = runs.stride;
  const bool planes = q.input_step != 1;
  flat = !planes && !q.dynamic && runs.stride == q.columns && q.output_stride == q.columns;
  const int64_t each = kBlock / std::max<int64_t>(1, q.columns);
  block = planes ? std::clamp<int64_t>(each, 16, 256) / 16 * 16 : std::max<int64_t>(1, each);
  blocks = (runs.length + block - 1) / block;
}

void Conversion::run(const Kernels& kernel, int64_t begin, int64_t end) const {
  const bool bytes = whole.input_type == Element::u8 || whole.input_type == Element::s8;
  const auto convert = bytes ? kernel.shift_rows : kernel.quantize_rows;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t run = task / blocks, first = task % blocks * block, row = run * runs.length + first;
    const int64_t rows = std::min(block, runs.length - first);
    RowQuantizer part = whole;
    part.input = static_cast<const uint8_t*>(whole.input) + (runs.offset(run) + first * runs.stride) * element;
    part.output = whole.output + run / lines * image + run % lines * line + first * whole.output_stride;
    if (part.row_scale) part.row_scale += row;
    if (part.row_zero) part.row_zero += row;
    if (flat) part.columns = part.output_stride = rows * whole.columns;
    convert(part, 0, flat ? 1 : rows);
  }
}

}  // namespace sparseq::gemm
