// The weights of a group of outputs in fours of inputs, as winograd_kernel.h reads them: in the tiles, else unpacked.
#pragma once
#include <cstdint>

#include "winograd.h"

namespace {

// Bytes [16 outputs][4 inputs]: of a tap's fours one every `step` bytes, of the next tap's after `tap`.
struct Fours {
  const uint8_t* at;
  int64_t step, tap;
};

template <class W>
struct WinogradWeights {
  static constexpr int64_t kGroup = sparseq::winograd::kGroup, kFour = 4 * kGroup;

  // Bytes that a group takes where tiles do not have it in fours.
  static int64_t room(const sparseq::Tiles& w) { return in_tiles(w) ? 0 : 9 * w.shape.in_channels * kGroup; }

  // scratch: room(w) bytes.
  static Fours group(const sparseq::Tiles& w, int64_t group, uint8_t* scratch) {
    const int64_t fours = w.shape.in_channels / 4;
    if (w.winograd != nullptr) return {w.winograd + group * 9 * fours * kFour, kFour, fours * kFour};
    if (!in_tiles(w)) {
      W::expand_sparse24(w, group, scratch);
      return {scratch, kFour, fours * kFour};
    }
    const int64_t width = w.panel_width(), channel = group * kGroup, step = 4 * width;
    return {w.data + w.chunk[channel / width * w.chunks].data + 4 * (channel % width), step, fours * step};
  }

 private:
  static bool in_tiles(const sparseq::Tiles& w) {
    return w.winograd != nullptr || w.kind == sparseq::WeightKind::dense;
  }
};

}  // namespace
