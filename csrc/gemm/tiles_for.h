// Tiles that came with a call, for one ISA.
#pragma once

#include <memory>
#include <optional>
#include <span>

#include "tiles.h"

namespace sparseq::gemm {

// Tiles at hand, where the ISA can read them; else packed anew, from the weight, and kept for later calls.
class TilesFor {
 public:
  // weight: [groups * out_channels, in_channels, taps]; given: of int8_tiles.
  // Throws std::invalid_argument where the tiles are not of this weight.
  TilesFor(const int8_t* weight, std::optional<std::span<const uint8_t>> given, const WeightShape& shape, Isa isa);
  const TiledWeight& operator*() const { return weight_; }
  const TiledWeight* operator->() const { return &weight_; }

 private:
  std::shared_ptr<const AlignedBytes> made_;
  TiledWeight weight_;
};

// [groups * out_channels, taps, in_channels], the order that tiles are made from.
std::vector<int8_t> channels_inside(const int8_t* weight, const WeightShape& shape);

}  // namespace sparseq::gemm
