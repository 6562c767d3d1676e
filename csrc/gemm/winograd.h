// Winograd's minimal filtering F(2 x 2, 3 x 3) on integers: 16 products where the direct way takes 36 (Lavin and Gray
// 2016, section 4.1; G doubled, so that it has no halves). For a tile d of 4 x 4 inputs and a kernel g, both u8 x s8:
//   U = (2 G) g (2 G)^T    |U| <= 9 * 128      V = B^T d B    |V| <= 4 * 255      both int16
//   4 Y = A^T [sum over channels of U . V] A   exact in int32, hence exact after the shift by 2
// No torch here.
#pragma once
#include <algorithm>
#include <cstdint>
#include <optional>

#include "gemm.h"

namespace sparseq::winograd {

constexpr int64_t kPoints = 16;        // of a transformed tile
constexpr int64_t kLanes = 16;         // input channels that are transformed together
constexpr int64_t kGroup = 16;         // output channels of a work item
constexpr int64_t kMostInputs = 1024;  // 4 Y fits int32: 4 * 9 * 1024 * 255 * 128 < 2^31

// How many bytes the weights are kept in for it; none where it does not serve.
inline int64_t packed_size(const WeightShape& s) {
  const bool serves = s.groups == 1 && s.taps == 9 && s.in_channels % kLanes == 0 && s.in_channels <= kMostInputs;
  return serves ? (s.out_channels + kGroup - 1) / kGroup * kGroup * 9 * s.in_channels : 0;
}

// weight OHWI -> [group of outputs][tap][pair of inputs][output of the group][input of the pair]: U, 3.6 times as
// large, is made of a group as its products want it.
void pack(const int8_t* weight, const WeightShape& shape, int8_t* to);

// The plan of a convolution that is faster this way; its items are (block of strips, group of outputs), a strip being
// two lines of an image's output.
std::optional<WorkPlan> plan(const Tiles& weight, const ConvShape* conv, const CacheSizes& caches);

inline int64_t strips(const ConvShape& s) { return (s.out_height + 1) / 2; }  // of an image
inline int64_t tiles(const ConvShape& s) { return (s.out_width + 1) / 2; }    // of a strip

}  // namespace sparseq::winograd
