#include "winograd.h"

#include <cstdlib>

namespace sparseq::winograd {
namespace {

// In products of a tile with a group at one point: what U of a group and V of a tile take beside.
constexpr double kUnpacked = 3.0, kInputs = 0.4;

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
  if (packed.layout.winograd.group == 0 || s.groups != 1 || s.taps != 9 || inputs % kLanes != 0 || inputs > kMostInputs)
    return;
  packed.winograd_most = fits(weight, s) ? 4 : 2;
  if (!packed.layout.classes || packed.kind == WeightKind::dense) return;
  const int64_t group = packed.layout.winograd.group;
  packed.winograd.assign(static_cast<std::size_t>((s.out_channels + group - 1) / group * group * 9 * inputs), 0);
  for (int64_t o = 0; o < s.out_channels; ++o)
    for (int64_t tap = 0; tap < 9; ++tap)
      for (int64_t i = 0; i < inputs; ++i) {
        const int64_t four = (o / group * 9 + tap) * (inputs / 4) + i / 4;
        packed.winograd[static_cast<std::size_t>((four * group + o % group) * 4 + i % 4)] =
            static_cast<uint8_t>(weight[(o * 9 + tap) * inputs + i]);
      }
}

WorkPlan plan_tiles(int t, const Tiling& weight, const ConvShape& s, const CacheSizes& caches, int threads) {
  WorkPlan plan;
  plan.winograd = t;
  plan.rows = s.batch * s.out_height * s.out_width;
  const int64_t all = s.batch * strips(s, t), side = t + 2, group = weight.layout.winograd.group;
  const int64_t groups = (weight.shape.out_channels + group - 1) / group;
  const int64_t line = 64 / group;  // groups of a cache line of bytes: threads that share one hold each other up
  // The transformed tiles of a block, inputs and half transformed sums, take most of L2: U is made anew for each.
  const int64_t bytes = tiles(s, t) * (2 * side * side * weight.shape.in_channels + 4 * side * t * group);
  const int64_t most = std::max<int64_t>(1, static_cast<int64_t>(caches.l2 * 5 / 6) / bytes);
  const int64_t fewest = (all + most - 1) / most, more = threads > 1 ? 4 * threads : 0;
  double best = 0;
  for (int64_t blocks = fewest; blocks <= std::min(all, fewest + more); ++blocks) {
    const int64_t block = (all + blocks - 1) / blocks, whole = (all + block - 1) / block;
    for (int64_t claim = groups; claim > 0; claim = claim > line ? (claim - 1) / line * line : 0) {
      if (groups % claim != 0) continue;
      const int64_t turns = (whole * (groups / claim) + threads - 1) / threads;
      const double cost = turns_taken(turns, threads) *
                          (static_cast<double>(block * tiles(s, t)) * (static_cast<double>(claim) + kInputs) +
                           kUnpacked * static_cast<double>(claim));
      if (best != 0 && cost >= best) continue;
      best = cost;
      plan.row_block = block, plan.row_blocks = whole, plan.claim = claim;
    }
  }
  plan.items = plan.row_blocks * groups;
  return plan;
}

std::optional<WorkPlan> plan(const Tiles& weight, const ConvShape* conv, const CacheSizes& caches, int threads) {
  if (conv == nullptr) return {};
  const ConvShape& s = *conv;
  if (s.kernel_height != 3 || s.kernel_width != 3 || s.stride_height != 1 || s.stride_width != 1 ||
      s.dilation_height != 1 || s.dilation_width != 1)
    return {};
  const WinogradLayout& costs = weight.layout.winograd;
  double best = (weight.kind == WeightKind::dense ? costs.direct : costs.direct24) *
                static_cast<double>(s.batch * s.out_height * s.out_width);
  std::optional<WorkPlan> found;
  for (const int t : {2, 4}) {
    if (t > weight.winograd_most) continue;
    const WorkPlan one = plan_tiles(t, weight, s, caches, threads);
    const int64_t all = s.batch * strips(s, t) * tiles(s, t), points = int64_t{t + 2} * (t + 2);
    const double cost =
        static_cast<double>(points) * (static_cast<double>(all) + kUnpacked * static_cast<double>(one.row_blocks));
    if (cost < best) best = cost, found = one;
  }
  return found;
}

}  // namespace sparseq::winograd
