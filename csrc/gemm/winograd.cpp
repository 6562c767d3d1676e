#include "winograd.h"

namespace sparseq::winograd {

void pack(const int8_t* weight, const WeightShape& shape, int16_t* to) {
  static constexpr int kDoubled[4][3] = {{2, 0, 0}, {1, 1, 1}, {1, -1, 1}, {0, 0, 2}};  // 2 G
  const int64_t inputs = shape.in_channels, outputs = shape.out_channels;
  std::fill_n(to, packed_size(shape), int16_t{0});
  for (int64_t o = 0; o < outputs; ++o)
    for (int64_t i = 0; i < inputs; ++i)
      for (int64_t point = 0; point < kPoints; ++point) {
        int sum = 0;
        for (int y = 0; y < 3; ++y)
          for (int x = 0; x < 3; ++x)
            sum += kDoubled[point / 4][y] * kDoubled[point % 4][x] * weight[(o * 9 + 3 * y + x) * inputs + i];
        const int64_t row = (o / kGroup * kPoints + point) * (inputs / 2) + i / 2;
        to[(row * kGroup + o % kGroup) * 2 + i % 2] = static_cast<int16_t>(sum);
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
  // The transformed tiles of a block take half of L2.
  const int64_t bytes = 2 * kPoints * in_strip * weight.shape.in_channels;
  const int64_t most = std::max<int64_t>(1, static_cast<int64_t>(caches.l2 / 2) / bytes);
  plan.row_blocks = (all + most - 1) / most;
  plan.row_block = (all + plan.row_blocks - 1) / plan.row_blocks;
  plan.row_blocks = (all + plan.row_block - 1) / plan.row_block;
  plan.items = plan.row_blocks * ((weight.shape.out_channels + kGroup - 1) / kGroup);
  return plan;
}

}  // namespace sparseq::winograd
