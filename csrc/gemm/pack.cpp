#include "gemm.h"
#include "packer.h"

namespace sparseq {
namespace {

// A block is 8 inputs of every channel of the panel: step 0 holds inputs 0..3 of channel 0, of channel 1, ...,
// step 1 inputs 4..7. Bytes (0, 1) and (2, 3) of a channel are vpmaddubsw's pairs; the pairs at the same place
// of the two steps form a quad.
struct DensePacker {
  const int8_t* weight;
  WeightShape shape;
  int64_t width;

  void gather(int64_t row, int64_t limit, const BlockRef& ref, int8_t* w) const {
    for (int64_t i = 0; i < kDenseBlock; ++i) {
      const int64_t column = ref.offset() + i;
      const bool inside = row < limit && column < shape.in_channels;
      w[i] = inside ? weight[(row * shape.taps + ref.tap) * shape.in_channels + column] : int8_t{0};
    }
  }

  void split(int64_t row0, int64_t limit, const BlockRef& ref, std::vector<BlockRef>* list) const {
    bool quad = true, wide[2][2] = {};  // of the steps, the vectors
    for (int64_t i = 0; i < width; ++i) {
      int8_t w[kDenseBlock];
      gather(row0 + i, limit, ref, w);
      for (int j = 0; j < kDenseBlock; j += 2) wide[j / 4][2 * i / width] |= !packing::pair_fits(w[j], w[j + 1]);
      quad = quad && packing::quad_fits(w[0], w[1], w[4], w[5]) && packing::quad_fits(w[2], w[3], w[6], w[7]);
    }
    if (quad) {
      list[kQuad].push_back(ref);
      return;
    }
    for (int step = 0; step < 2; ++step) {
      const auto [first, second] = wide[step];
      const BlockClass kind = first ? (second ? kWide : kWideFirst) : (second ? kWideSecond : kPair);
      list[kind].push_back(BlockRef{ref.tap, static_cast<uint16_t>(ref.quarter + step)});
    }
  }

  int64_t write(int64_t row0, int64_t limit, const BlockRef& ref, BlockClass kind, uint8_t* to) const {
    const int64_t inputs = kind == kQuad ? kDenseBlock : kDenseBlock / 2;
    for (int64_t i = 0; i < width; ++i) {
      int8_t w[kDenseBlock];
      gather(row0 + i, limit, ref, w);
      for (int64_t j = 0; j < inputs; ++j) to[j / 4 * 4 * width + 4 * i + j % 4] = static_cast<uint8_t>(w[j]);
    }
    return inputs * width;
  }
};

}  // namespace

PackedWeight pack_dense(const int8_t* weight, const WeightShape& shape, const Layout& layout,
                        const CacheSizes& caches) {
  PackedWeight packed;
  packed.kind = WeightKind::dense;
  packed.layout = layout;
  packed.shape = shape;
  const int64_t rows = shape.groups * shape.out_channels, columns = shape.taps * shape.in_channels;
  packed.weight_sum.resize(static_cast<std::size_t>(rows));
  for (int64_t r = 0; r < rows; ++r) {
    int32_t sum = 0;
    for (int64_t c = 0; c < columns; ++c) sum += weight[r * columns + c];
    packed.weight_sum[static_cast<std::size_t>(r)] = sum;
  }
  const DensePacker packer{weight, shape, packed.panel_width()};
  packing::fill(
      packed, kDenseBlock, kDenseBlock * packed.panel_width(), caches,
      [&](int64_t row0, int64_t limit, const BlockRef& ref, std::vector<BlockRef>* list) {
        packer.split(row0, limit, ref, list);
      },
      [&](int64_t row0, int64_t limit, const BlockRef& ref, BlockClass kind, bool, uint8_t* to) {
        return packer.write(row0, limit, ref, kind, to);
      });
  return packed;
}

void pack_depthwise(const int8_t* weight, int64_t channels, int64_t taps, std::vector<int32_t>& pairs,
                    std::vector<int32_t>& weight_sum) {
  const int64_t padded = (channels + 15) / 16 * 16;
  pairs.assign(static_cast<std::size_t>((taps + 1) / 2 * padded), 0);
  weight_sum.assign(static_cast<std::size_t>(channels), 0);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t < taps; ++t) {
      const int32_t w = weight[c * taps + t];
      weight_sum[static_cast<std::size_t>(c)] += w;
      int32_t& pair = pairs[static_cast<std::size_t>(t / 2 * padded + c)];
      const uint32_t half = static_cast<uint32_t>(w) & 0xffffu;
      pair = static_cast<int32_t>(static_cast<uint32_t>(pair) | (t % 2 == 0 ? half : half << 16));
    }
  }
}

}  // namespace sparseq
