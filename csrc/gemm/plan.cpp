#include <algorithm>

#include "amx.h"
#include "gemm.h"
#include "winograd.h"

namespace sparseq {

WorkPlan plan_work(const Tiles& weight, const ConvShape* conv, int64_t rows, const CacheSizes& caches, int threads) {
  WorkPlan plan;
  plan.rows = rows;
  if (rows == 0 || weight.shape.out_channels == 0) return plan;
  if (const auto found = winograd::plan(weight, conv, caches, threads)) return *found;
  if (const auto found = amx::plan(weight, conv, rows, caches, threads)) return *found;
  const int64_t tile = weight.tile_rows();
  const int64_t depth = std::max<int64_t>(1, weight.shape.taps * weight.shape.in_channels);
  const int64_t channels = weight.shape.groups * weight.channel_groups();
  // Activations of a row block take half of L2. Neighbouring pixels of a convolution share their inputs, so
  // that a block of them holds far less than rows * depth bytes: about one tap's worth.
  int64_t block = static_cast<int64_t>(caches.l2 / 2) / std::max<int64_t>(1, depth / weight.shape.taps);
  block = std::clamp<int64_t>(block, 4 * tile, 256);
  // Enough items for every thread, unless that would make tiles incomplete.
  const int64_t wanted = 4 * static_cast<int64_t>(std::max(1, threads));
  while (block > 4 * tile && (rows + block - 1) / block * channels < wanted) block /= 2;
  // Blocks of nearly equal size, whole tiles.
  const int64_t blocks = (rows + block - 1) / block;
  block = (rows + blocks - 1) / blocks;
  plan.row_block = (block + tile - 1) / tile * tile;
  plan.row_blocks = (rows + plan.row_block - 1) / plan.row_block;
  plan.items = plan.row_blocks * channels;
  const int64_t line = 64 / weight.group_width();  // of bytes: threads that write into one hold each other up
  if (line > 1 && weight.channel_groups() % line == 0) plan.claim = line;
  return plan;
}

uint8_t* thread_scratch(std::size_t size) {
  thread_local AlignedBytes bytes;
  if (bytes.size() < size) bytes = AlignedBytes(size + size / 2);
  return bytes.data();
}

}  // namespace sparseq
