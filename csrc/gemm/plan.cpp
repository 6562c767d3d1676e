#include <algorithm>

#include "amx.h"
#include "gemm.h"
#include "winograd.h"

namespace sparseq {
namespace {

constexpr double kItem = 1.5;     // tiles that take as long as what is done once for an item
constexpr double kShared = 1.02;  // times as long where threads share blocks, of which each fetches all activations

}  // namespace

WorkPlan plan_work(const Tiles& weight, const ConvShape* conv, int64_t rows, const CacheSizes& caches, int threads,
                   bool any_rows) {
  WorkPlan plan;
  plan.rows = rows;
  if (rows == 0 || weight.shape.out_channels == 0) return plan;
  if (!any_rows) {
    if (const auto found = winograd::plan(weight, conv, caches, threads)) return *found;
    if (const auto found = amx::plan(weight, conv, rows, caches, threads)) return *found;
  }
  const int64_t tile = weight.tile_rows();
  const int64_t depth = std::max<int64_t>(1, weight.shape.taps * weight.shape.in_channels);
  const int64_t channels = weight.shape.groups * weight.channel_groups();
  const int64_t line = 64 / weight.group_width();  // of bytes: threads that write into one hold each other up
  if (line > 1 && weight.channel_groups() % line == 0) plan.claim = line;
  // Activations of a row block take at most half of L2. Neighbouring pixels of a convolution share their inputs, so
  // that a block of them holds far less than rows * depth bytes: about one tap's worth.
  const int64_t most = std::clamp<int64_t>(
      static_cast<int64_t>(caches.l2 / 2) / std::max<int64_t>(1, depth / weight.shape.taps), 4 * tile, 256);
  // Of few blocks or more those with which the last thread is done first: each has whole tiles, of nearly equal number.
  const int64_t fewest = (rows + most - 1) / most, more = threads > 1 ? 4 * threads : 0;
  double best = 0;
  for (int64_t blocks = fewest; blocks <= fewest + more; ++blocks) {
    const int64_t tiles = ((rows + blocks - 1) / blocks + tile - 1) / tile;
    const int64_t whole = (rows + tiles * tile - 1) / (tiles * tile);
    const int64_t claims = whole * channels / plan.claim, turns = (claims + threads - 1) / threads * plan.claim;
    const double cost =
        turns_taken(turns, threads) * (static_cast<double>(tiles) + kItem) * (whole % threads == 0 ? 1 : kShared);
    if (best == 0 || cost < best) best = cost, plan.row_block = tiles * tile, plan.row_blocks = whole;
    if (tiles == 1) break;
  }
  plan.items = plan.row_blocks * channels;
  return plan;
}

uint8_t* thread_scratch(std::size_t size) {
  thread_local AlignedBytes bytes;
  if (bytes.size() < size) bytes = AlignedBytes(size + size / 2);
  return bytes.data();
}

}  // namespace sparseq
