// The weights of a group of outputs in fours of inputs, as winograd_kernel.h reads them: in the tiles, else put in
// order or unpacked.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "winograd.h"

namespace {

template <class W>
struct WinogradWeights {
  using Fours = sparseq::winograd::Fours;
  static constexpr int64_t kGroup = W::kGroup, kFour = 4 * kGroup, kVector = 4 * W::kLanes;

  // Bytes that a group takes where tiles do not have it in fours.
  static int64_t room(const sparseq::Tiles& w) { return in_tiles(w) ? 0 : 9 * w.shape.in_channels * kGroup; }

  // scratch: room(w) bytes.
  static Fours group(const sparseq::Tiles& w, int64_t group, uint8_t* scratch) {
    const int64_t fours = w.shape.in_channels / 4;
    if (w.winograd != nullptr) return {w.winograd + group * 9 * fours * kFour, kFour, fours * kFour, kVector};
    if (!in_tiles(w)) {
      if (w.kind == sparseq::WeightKind::sparse24) return W::expand_sparse24(w, group, scratch);
      put_in_order(w, group, scratch);
      return {scratch, kFour, fours * kFour, kVector};
    }
    const int64_t width = w.panel_width(), channel = group * kGroup, step = 4 * width;
    return {w.data + w.chunk[channel / width * w.chunks].data + 4 * (channel % width), step, fours * step, kVector};
  }

 private:
  static bool in_tiles(const sparseq::Tiles& w) {
    return w.winograd != nullptr || (w.kind == sparseq::WeightKind::dense && !w.layout.classes);
  }

  // Blocks with classes, of a panel that is as wide as a group.
  static void put_in_order(const sparseq::Tiles& w, int64_t group, uint8_t* to) {
    const int64_t fours = w.shape.in_channels / 4;
    const sparseq::Chunk* const chunks = w.chunk + group * w.chunks;
    const uint8_t* from = w.data + chunks->data;
    for (const sparseq::Chunk* c = chunks; c < chunks + w.chunks; ++c) {
      const sparseq::BlockRef* ref = w.refs + c->refs;
      const auto copy = [&]<int64_t kSize>(uint32_t blocks, std::integral_constant<int64_t, kSize>) {
        for (uint32_t b = 0; b < blocks; ++b, ++ref, from += kSize)
          std::memcpy(to + (ref->tap * fours + ref->quarter) * kFour, from, kSize);
      };
      copy(c->count[sparseq::kQuad], std::integral_constant<int64_t, 2 * kFour>{});
      copy(c->blocks() - c->count[sparseq::kQuad], std::integral_constant<int64_t, kFour>{});
    }
  }
};

}  // namespace
