// The arguments of histogram, checked and arranged: shared by CPU and CUDA.
#pragma once

#include "operands.h"

namespace sparseq::affine {

constexpr int64_t kMaxBins = 65536;

struct Histogram {
  Arranged arranged;
  Tensor limit;                // contiguous, [channels]
  std::vector<int64_t> shape;  // of the counts
  int64_t bins;
};

inline Histogram histogram_of(const Tensor& x, const Tensor& limit, int64_t bins, std::optional<int64_t> axis,
                              std::optional<int64_t> group_size) {
  STD_TORCH_CHECK(bins >= 2 && bins <= kMaxBins && (bins & (bins - 1)) == 0,
                  "histogram: bins must be a power of two from 2 to ", kMaxBins, ", got ", bins);
  STD_TORCH_CHECK(limit.scalar_type() == ScalarType::Float, "histogram: limit must be float32, got ",
                  dtype_name(limit.scalar_type()));
  STD_TORCH_CHECK(limit.device() == x.device(), "histogram: limit must be on x's device");
  Histogram h{arrange("histogram", x, axis, group_size), made_contiguous(limit), {}, bins};
  const int64_t channels = h.arranged.layout.channels;
  STD_TORCH_CHECK(limit.numel() == channels || x.numel() == 0, "histogram: limit must have ", channels,
                  " elements for x of shape ", shape_of(x), ", got ", limit.numel());
  h.shape.assign(limit.sizes().begin(), limit.sizes().end());
  h.shape.push_back(bins);
  return h;
}

}  // namespace sparseq::affine
