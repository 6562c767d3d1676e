// The frame that dense and 2:4 packing share: cut the (tap, channel block) sequence into chunks, sort each
// chunk's blocks by class, and write them one after the other. Internal to the two pack.cpp files.
#pragma once
#include <algorithm>
#include <stdexcept>
#include <vector>

#include "packed.h"

namespace sparseq::packing {

// What the sums of a block's wide channels begin at. Its values lie in steps of [width][4].
inline void add_start(BlockClass kind, const uint8_t* block, int64_t steps, int64_t width, int32_t* start) {
  const int64_t begin = kind == kWideSecond ? width / 2 : 0, end = kind == kWideFirst ? width / 2 : width;
  for (int64_t step = 0; step < steps; ++step, block += 4 * width)
    for (int64_t i = 4 * begin; i < 4 * end; ++i) {
      const int32_t w = static_cast<int8_t>(block[i]);
      start[i / 4] += w * (w < 0 ? 127 : 128);
    }
}

// split(row0, limit, ref, list) appends the block, or its halves, to list[class]; write(row0, limit, ref, class,
// odd, to) returns the bytes written, at most block_bytes; odd: every second block of a class. row0: first output
// channel of the panel (over all groups); limit: one past the last channel of its group.
template <class Split, class Write>
void fill(PackedWeight& packed, int64_t block_inputs, int64_t block_bytes, const CacheSizes& caches, Split split,
          Write write) {
  const WeightShape& shape = packed.shape;
  if (shape.taps > kMaxTaps || shape.in_channels > kMaxInChannels)
    throw std::length_error("pack: taps must be <= 65535 and input channels <= 262140");
  const int64_t width = packed.panel_width(), group_width = packed.group_width();
  const int64_t groups_of_channels = (shape.out_channels + group_width - 1) / group_width;
  packed.panels = groups_of_channels * group_width / width;
  const int64_t per_tap = packed.tap_blocks(block_inputs);
  const int64_t blocks = per_tap * shape.taps;
  // One work item's weights for a chunk take half of L1; the rest is for activations and accumulators. Broad panels'
  // may come from L2, at 21 bytes a cycle, and 2:4 ones without classes, at 13: that takes less than to write down the
  // sums and read them again.
  const int64_t item_bytes = block_inputs * group_width;
  const bool sparse = packed.kind != WeightKind::dense;
  const auto l1 = static_cast<int64_t>(caches.l1);
  const int64_t most = packed.broad() ? l1 * 3 / 2 : sparse && !packed.layout.classes ? l1 * 3 : l1 / 2;
  packed.chunk_blocks = std::max<int64_t>(4, most / item_bytes);
  packed.chunks = std::max<int64_t>(1, (blocks + packed.chunk_blocks - 1) / packed.chunk_blocks);
  packed.chunk_blocks = (blocks + packed.chunks - 1) / packed.chunks;

  const int64_t panels = shape.groups * packed.panels;
  packed.chunk.resize(static_cast<std::size_t>(panels * packed.chunks));
  if (packed.layout.classes) packed.start.resize(static_cast<std::size_t>(panels * width));
  packed.refs.reserve(static_cast<std::size_t>(panels * blocks));
  packed.data = AlignedBytes(static_cast<std::size_t>(panels * blocks * block_bytes));
  const int64_t wide_steps = packed.kind == WeightKind::dense ? 1 : 2;
  std::vector<BlockRef> sorted[kClasses];
  std::size_t at = 0;
  for (int64_t panel = 0; panel < panels; ++panel) {
    const int64_t group = panel / packed.panels;
    const int64_t row0 = group * shape.out_channels + panel % packed.panels * width;
    const int64_t limit = (group + 1) * shape.out_channels;
    for (int64_t c = 0; c < packed.chunks; ++c) {
      Chunk& chunk = packed.chunk[static_cast<std::size_t>(panel * packed.chunks + c)];
      chunk.data = at;
      chunk.refs = static_cast<uint32_t>(packed.refs.size());
      for (auto& list : sorted) list.clear();
      const int64_t last = std::min(blocks, (c + 1) * packed.chunk_blocks);
      for (int64_t b = c * packed.chunk_blocks; b < last; ++b) {
        const BlockRef ref{static_cast<uint16_t>(b / per_tap), static_cast<uint16_t>(b % per_tap * block_inputs / 4)};
        if (packed.layout.classes)
          split(row0, limit, ref, sorted);
        else
          sorted[kQuad].push_back(ref);
      }
      for (int k = 0; k < kClasses; ++k) {
        chunk.count[k] = static_cast<uint32_t>(sorted[k].size());
        bool odd = false;
        for (const BlockRef& ref : sorted[k]) {
          uint8_t* block = packed.data.data() + at;
          const int64_t bytes = write(row0, limit, ref, static_cast<BlockClass>(k), odd, block);
          if (k >= kWide)
            add_start(static_cast<BlockClass>(k), block, wide_steps, width, packed.start.data() + panel * width);
          odd = !odd;
          packed.refs.push_back(ref);
          at += static_cast<std::size_t>(bytes);
        }
      }
    }
  }
  packed.data.shrink(at);
}

inline bool pair_fits(int a, int b) { return a + b <= 128 && a + b >= -128; }

// Four products that share one int16: the positive and the negative weights are bounded separately, since
// any subset of the activations may be 255 while the others are 0.
inline bool quad_fits(int a, int b, int c, int d) {
  const auto positive = [](int x) { return x > 0 ? x : 0; };
  const int up = positive(a) + positive(b) + positive(c) + positive(d);
  const int down = positive(-a) + positive(-b) + positive(-c) + positive(-d);
  return up <= 128 && down <= 128;
}

}  // namespace sparseq::packing
