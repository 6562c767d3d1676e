#include <algorithm>

#include "../gemm/packer.h"
#include "format.h"

namespace sparseq {
namespace {

struct Entry {
  int value, position;
};

// A block is 16 inputs of every channel of the panel, of which 8 per channel are kept, in two steps.
// With classes (AVX2) which of the 8 goes where is free, since vpshufb fetches any of 16 activations for any byte:
//   values of step 0 [lanes][4], values of step 1 [lanes][4], positions [lanes][4]: low nibble step 0, high step 1
// Without, step 0 has the first 8 inputs and step 1 the last 8, each in order, two of each group of 4, so that 2
// bits tell a value's place in its group; two blocks share a vector of them:
//   positions [lanes][4]: bits 0-1 block 0 step 0, 2-3 step 1, 4-5 block 1 step 0, 6-7 step 1;
//   values of block 0 [2 steps][lanes][4], values of block 1
struct SparsePacker {
  const int8_t* values;
  const uint8_t* indices;
  WeightShape shape;
  int64_t lanes;

  void gather(int64_t row, int64_t limit, const BlockRef& ref, Entry* e) const {
    const int64_t groups = (shape.in_channels + 3) / 4, index_bytes = (groups + 1) / 2;
    const int64_t line = row * shape.taps + ref.tap;
    for (int i = 0; i < 4; ++i) {
      const int64_t g = ref.offset() / 4 + i;
      if (row >= limit || g >= groups) {
        e[2 * i] = e[2 * i + 1] = Entry{0, 4 * i};
        continue;
      }
      const int nibble = indices[line * index_bytes + g / 2] >> (4 * (g % 2)) & 15;
      e[2 * i] = Entry{values[(line * groups + g) * 2], 4 * i + (nibble & 3)};
      e[2 * i + 1] = Entry{values[(line * groups + g) * 2 + 1], 4 * i + (nibble >> 2)};
    }
  }

  // Arranges a channel's 8 entries (pairs at 0-1, 2-3, ..., quads at 0-3 and 4-7) and says what now fits.
  static BlockClass arrange(Entry* e) {
    const auto value = [&](int i) { return e[i].value; };
    const auto quads = [&] {
      return packing::quad_fits(value(0), value(1), value(2), value(3)) &&
             packing::quad_fits(value(4), value(5), value(6), value(7));
    };
    if (quads()) return kQuad;
    std::sort(e, e + 8, [](const Entry& a, const Entry& b) {
      return a.value != b.value ? a.value < b.value : a.position < b.position;
    });
    // Every division of the 8 into two fours, entry 0 always in the first.
    for (unsigned set = 1; set < 256; set += 2) {
      if (__builtin_popcount(set) != 4) continue;
      int up[2] = {0, 0}, down[2] = {0, 0};
      for (int i = 0; i < 8; ++i) {
        const unsigned side = set >> i & 1;
        if (value(i) > 0)
          up[side] += value(i);
        else
          down[side] += value(i);
      }
      if (std::max(up[0], up[1]) > 128 || std::min(down[0], down[1]) < -128) continue;
      Entry parted[8];
      int first = 0, second = 4;
      for (int i = 0; i < 8; ++i) parted[set >> i & 1 ? first++ : second++] = e[i];
      std::copy(parted, parted + 8, e);
      return kQuad;
    }
    // Smallest with largest: no other pairing has a smaller largest sum or a larger smallest sum.
    const Entry sorted[8] = {e[0], e[1], e[2], e[3], e[4], e[5], e[6], e[7]};
    bool pairs = true;
    for (int i = 0; i < 4; ++i) {
      e[2 * i] = sorted[i];
      e[2 * i + 1] = sorted[7 - i];
      pairs = pairs && packing::pair_fits(sorted[i].value, sorted[7 - i].value);
    }
    return pairs ? kPair : kWide;
  }

  // The pairing that a channel gets when its block is not all quads must hold for pairs, too: in a quad
  // every pair fits already (both bounds on four values bound any two of them).
  BlockClass classify(int64_t row0, int64_t limit, const BlockRef& ref) const {
    BlockClass worst = kQuad;
    for (int64_t i = 0; i < lanes && worst != kWide; ++i) {
      Entry e[8];
      gather(row0 + i, limit, ref, e);
      worst = std::max(worst, arrange(e));
    }
    return worst;
  }

  void write_classified(int64_t row0, int64_t limit, const BlockRef& ref, uint8_t* to) const {
    for (int64_t i = 0; i < lanes; ++i) {
      Entry e[8];
      gather(row0 + i, limit, ref, e);
      arrange(e);
      for (int j = 0; j < 4; ++j) {  // bytes (0, 1) of both steps are quad 0, bytes (2, 3) quad 1
        const Entry& a = e[j / 2 * 4 + j % 2];
        const Entry& b = e[j / 2 * 4 + 2 + j % 2];
        to[4 * i + j] = static_cast<uint8_t>(a.value);
        to[4 * lanes + 4 * i + j] = static_cast<uint8_t>(b.value);
        to[8 * lanes + 4 * i + j] = static_cast<uint8_t>(a.position | b.position << 4);
      }
    }
  }

  // `second` of its pair: the positions lie before the first one's values.
  void write_pair(int64_t row0, int64_t limit, const BlockRef& ref, bool second, uint8_t* to) const {
    uint8_t* positions = second ? to - 12 * lanes : to;
    uint8_t* kept = second ? to : to + 4 * lanes;
    for (int64_t i = 0; i < lanes; ++i) {
      Entry e[8];
      gather(row0 + i, limit, ref, e);
      for (int j = 0; j < 4; ++j) {
        const int fields = (e[j].position & 3) | (e[4 + j].position & 3) << 2;
        kept[4 * i + j] = static_cast<uint8_t>(e[j].value);
        kept[4 * lanes + 4 * i + j] = static_cast<uint8_t>(e[4 + j].value);
        uint8_t& byte = positions[4 * i + j];
        byte = static_cast<uint8_t>(second ? byte | fields << 4 : fields);
      }
    }
  }
};

}  // namespace

PackedWeight pack_sparse24(const int8_t* values, const uint8_t* indices, const WeightShape& shape, const Layout& layout,
                           const CacheSizes& caches) {
  PackedWeight packed;
  packed.kind = WeightKind::sparse24;
  packed.layout = layout;
  packed.shape = shape;
  const int64_t rows = shape.groups * shape.out_channels;
  const int64_t columns = shape.taps * values_24(shape.in_channels);
  packed.weight_sum.resize(static_cast<std::size_t>(rows));
  for (int64_t r = 0; r < rows; ++r) {
    int32_t sum = 0;
    for (int64_t c = 0; c < columns; ++c) sum += values[r * columns + c];
    packed.weight_sum[static_cast<std::size_t>(r)] = sum;
  }
  const SparsePacker packer{values, indices, shape, packed.panel_width()};
  packing::fill(
      packed, kSparseBlock, 12 * packed.panel_width(), caches,
      [&](int64_t row0, int64_t limit, const BlockRef& ref, std::vector<BlockRef>* list) {
        list[packer.classify(row0, limit, ref)].push_back(ref);
      },
      [&](int64_t row0, int64_t limit, const BlockRef& ref, BlockClass, bool odd, uint8_t* to) {
        if (layout.classes) {
          packer.write_classified(row0, limit, ref, to);
          return 12 * packer.lanes;
        }
        packer.write_pair(row0, limit, ref, odd, to);
        return (odd ? 8 : 12) * packer.lanes;
      });
  return packed;
}

}  // namespace sparseq
