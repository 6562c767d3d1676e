#include "winograd.h"

namespace sparseq::winograd {

void pack(const int8_t* weight, const WeightShape& shape, int8_t* to) {
  const int64_t inputs = shape.in_channels;
  std::fill_n(to, packed_size(shape), int8_t{0});
  for (int64_t o = 0; o < shape.out_channels; ++o)
    for (int64_t tap = 0; tap < 9; ++tap)
      for (int64_t i = 0; i < inputs; ++i) {
        const int64_t row = (o / kGroup * 9 + tap) * (inputs / 2) + i / 2;
        to[(row * kGroup + o % kGroup) * 2 + i % 2] = weight[(o * 9 + tap) * inputs + i];
      }
}

std::optional<WorkPlan> plan(const Tiles& weight, const ConvShape* conv, const CacheSizes& caches) {
  if (weight.winograd == nullptr || conv == nullptr) return {};
  const ConvShape& s = *conv;
  if (s.kernel_height != 3 || s.kernel_width != 3 || s.stride_height != 1 || s.stride_width != 1 ||
      s.dilation_height != 1 || s.dilation_width != 1)
    return {};
  const int64_t all = s.batch * strips(s), in_strip = tiles(s), pixels = s.batch * s.out_height * s.out_width;
  // Half tiles at odd borders, and few tiles for each read of U, are what the direct way saves.
  constexpr int64_t kFewest = 12;
  if (all * in_strip < kFewest || 5 * kPoints * all * in_strip > 4 * 9 * pixels) return {};
  WorkPlan plan;
  plan.winograd = true;
  plan.rows = pixels;
  // The transformed tiles of a block take most of L2: U is made anew for each.
  const int64_t bytes = 2 * kPoints * in_strip * weight.shape.in_channels;
  const int64_t most = std::max<int64_t>(1, static_cast<int64_t>(caches.l2 * 5 / 6) / bytes);
  plan.row_blocks = (all + most - 1) / most;
  plan.row_block = (all + plan.row_blocks - 1) / plan.row_blocks;
  plan.row_blocks = (all + plan.row_block - 1) / plan.row_block;
  plan.items = plan.row_blocks * ((weight.shape.out_channels + kGroup - 1) / kGroup);
  return plan;
}

}  // namespace sparseq::winograd
