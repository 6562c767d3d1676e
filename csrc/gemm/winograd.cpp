#include "winograd.h"

#include <cstdlib>

namespace sparseq::winograd {
namespace {

// A channel's outputs lie between -255 times its negative weights' sum and 255 times its positive ones'.
bool fits(const int8_t* weight, const WeightShape& shape) {
  const int64_t depth = shape.taps * shape.in_channels;
  for (int64_t o = 0; o < shape.out_channels; ++o) {
    int64_t sum[2] = {0, 0};
    for (int64_t i = 0; i < depth; ++i) sum[weight[o * depth + i] < 0] += std::abs(int{weight[o * depth + i]});
    if (std::max(sum[0], sum[1]) > kMostSum) return false;
  }
  return true;
}

}  // namespace

void keep(const int8_t* weight, PackedWeight& packed) {
  const WeightShape& s = packed.shape;
  const int64_t inputs = s.in_channels;
  if (!packed.layout.winograd || s.groups != 1 || s.taps != 9 || inputs % kLanes != 0 || inputs > kMostInputs) return;
  packed.winograd.assign(static_cast<std::size_t>((s.out_channels + kGroup - 1) / kGroup * kGroup * 9 * inputs), 0);
  for (int64_t o = 0; o < s.out_channels; ++o)
    for (int64_t tap = 0; tap < 9; ++tap)
      for (int64_t i = 0; i < inputs; ++i) {
        const int64_t row = (o / kGroup * 9 + tap) * (inputs / 2) + i / 2;
        packed.winograd[static_cast<std::size_t>((row * kGroup + o % kGroup) * 2 + i % 2)] =
            weight[(o * 9 + tap) * inputs + i];
      }
  packed.winograd_most = fits(weight, s) ? 4 : 2;
}

WorkPlan plan_tiles(int t, const WeightShape& weight, const ConvShape& s, const CacheSizes& caches) {
  WorkPlan plan;
  plan.winograd = t;
  plan.rows = s.batch * s.out_height * s.out_width;
  const int64_t all = s.batch * strips(s, t), side = t + 2;
  // The transformed tiles of a block, inputs and half transformed sums, take most of L2: U is made anew for each.
  const int64_t bytes = tiles(s, t) * (2 * side * side * weight.in_channels + 4 * side * t * kGroup);
  const int64_t most = std::max<int64_t>(1, static_cast<int64_t>(caches.l2 * 5 / 6) / bytes);
  plan.row_blocks = (all + most - 1) / most;
  plan.row_block = (all + plan.row_blocks - 1) / plan.row_blocks;
  plan.row_blocks = (all + plan.row_block - 1) / plan.row_block;
  plan.items = plan.row_blocks * ((weight.out_channels + kGroup - 1) / kGroup);
  return plan;
}

std::optional<WorkPlan> plan(const Tiles& weight, const ConvShape* conv, const CacheSizes& caches) {
  if (weight.winograd == nullptr || conv == nullptr) return {};
  const ConvShape& s = *conv;
  if (s.kernel_height != 3 || s.kernel_width != 3 || s.stride_height != 1 || s.stride_width != 1 ||
      s.dilation_height != 1 || s.dilation_width != 1)
    return {};
  // In products of a tile's point: the direct way's, and U of each block as so many tiles more.
  constexpr double kDirect = 7.2, kDirect24 = 4.5, kUnpacked = 3.0;
  double best = (weight.kind == WeightKind::dense ? kDirect : kDirect24) *
                static_cast<double>(s.batch * s.out_height * s.out_width);
  std::optional<WorkPlan> found;
  for (const int t : {2, 4}) {
    if (t > weight.winograd_most) continue;
    const WorkPlan one = plan_tiles(t, weight.shape, s, caches);
    const int64_t all = s.batch * strips(s, t) * tiles(s, t), points = int64_t{t + 2} * (t + 2);
    const double cost =
        static_cast<double>(points) * (static_cast<double>(all) + kUnpacked * static_cast<double>(one.row_blocks));
    if (cost < best) best = cost, found = one;
  }
  return found;
}

}  // namespace sparseq::winograd
