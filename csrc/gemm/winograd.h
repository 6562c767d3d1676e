// Winograd's minimal filtering F(t x t, 3 x 3) on integers (Lavin and Gray 2016, section 4): for t = 2 it takes 16
// products where the direct way takes 36, for t = 4 36 where that takes 144. Of a tile d of (t + 2)^2 inputs and a
// kernel g, u8 and s8, with rows of G scaled to integers and their scales D divided out at the end:
//   U = (D G) g (D G)^T         t = 2: |U| <= 9 * 128    t = 4: 49 * 128      both int16
//   V = B^T d B                 t = 2: |V| <= 2 * 2 * 255  t = 4: 50 * 255
//   Z = A^T [sum over channels of U . V] A, A scaled too: 4 Y for t = 2, 9 Y 2^s for t = 4, s <= 6
// 4 Y fits int32. 9 Y 2^s need not: it is computed modulo 2^32, where 9 has an inverse, so that Y is exact whenever
// it fits 32 - s bits, which sums of the weights tell (fits).
// No torch here.
#pragma once
#include <algorithm>
#include <cstdint>
#include <optional>

#include "gemm.h"

namespace sparseq::winograd {

constexpr int64_t kLanes = 16;                          // input channels are a multiple of
constexpr int64_t kMostInputs = 1024;                   // 4 Y fits int32: 4 * 9 * 1024 * 255 * 128 < 2^31
constexpr int64_t kMostSum = (int64_t{1} << 25) / 255;  // of a channel's weights of one sign: t = 4, s = 6

// A group's weights, [outputs of a vector][4 inputs]: bytes from one four to the next of its tap, from a tap to the
// next, and from a vector's outputs to the next one's.
struct Fours {
  const uint8_t* at;
  int64_t step, tap, vector;
};

// weight: OHWI, all of it. Notes in packed which tiles are exact, where its layout and shape have this way. U, 3.6 or 8
// times as large as the weight, is made of a group when its products want it, of tiles as they are; 2:4 ones with
// classes lie too far from it, and for them the weight is kept once more, as [group of outputs][tap][four
// inputs][output][4].
void keep(const int8_t* weight, PackedWeight& packed);

// The plan of a convolution that is faster this way; its items are (block of strips, group of outputs), a strip being
// t lines of an image's output.
std::optional<WorkPlan> plan(const Tiles& weight, const ConvShape* conv, const CacheSizes& caches, int threads);
// The same with a given t.
WorkPlan plan_tiles(int t, const Tiling& weight, const ConvShape& conv, const CacheSizes& caches, int threads);

inline int64_t strips(const ConvShape& s, int t) { return (s.out_height + t - 1) / t; }  // of an image
inline int64_t first_row(const ConvShape& s, int t, int64_t strip) {                     // of the output
  return (strip / strips(s, t) * s.out_height + strip % strips(s, t) * t) * s.out_width;
}
inline int64_t tiles(const ConvShape& s, int t) { return (s.out_width + t - 1) / t; }  // of a strip

}  // namespace sparseq::winograd
