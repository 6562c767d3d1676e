// A packed weight as one flat run of bytes that a tensor can hold: a header, then its arrays, each at a
// multiple of 64 bytes. Made on load for one ISA and never saved by sparseq: modules keep them in buffers that are
// not persistent. What a call checks is the header, whole, by its checksum, and that it is of this weight's shape
// and of these bytes' length; the arrays are trusted, since to look at them would take as long as to multiply.
// An exported program may carry them to another machine, or to an address that vectors cannot be loaded from:
// such ones are packed anew, once, and kept by the content that their header names.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "../core/isa.h"
#include "gemm.h"

namespace sparseq::gemm {

enum class TileKind : int32_t { dense = 0, sparse24 = 1, depthwise = 2 };

struct TileHeader {
  int32_t magic;  // kMagic
  TileKind kind;  // Python reads this one: what explain() calls dense, 2:4 or depthwise
  Isa isa;
  int32_t winograd_most;  // PackedWeight's
  WeightShape shape;
  int64_t panels, chunks, chunk_blocks;
  int64_t sums_at, start_at, winograd_at, chunks_at, refs_at, data_at, size;  // offsets in bytes
  uint64_t content;                                                           // a hash of the weight
  uint64_t checksum;                                                          // of all that is above
};
constexpr int32_t kMagic = 0x53514c5c;  // another one whenever tiles lie otherwise

struct TiledWeight {
  const TileHeader* header;
  Tiles tiles;           // dense and 2:4
  const int32_t* sums;   // [outputs]
  const int32_t* pairs;  // depthwise
};

// weight: OHWI, [groups * out_channels, taps, in_channels], any int8 values. Depthwise where every group has one
// input and one output. Else as wanted; without a wish 2:4 where every four neighbouring inputs hold at most two
// non-zeros, or dense. Throws std::invalid_argument where 2:4 is wanted of a weight that is not.
AlignedBytes make_tiles(const int8_t* weight, const WeightShape& shape, Isa isa,
                        std::optional<TileKind> wanted = std::nullopt);

// Throws std::invalid_argument where the header is not as it was made, the bytes are not all there or not for this
// shape.
TileHeader read_header(const uint8_t* bytes, int64_t size, const WeightShape& shape);

// Whether kernels of the ISA can read tiles where they lie: they load whole vectors.
bool readable(const TileHeader& header, const uint8_t* bytes, Isa isa);

// Throws as read_header. The bytes must be readable.
TiledWeight view_tiles(const uint8_t* bytes, int64_t size, const WeightShape& shape);

const Kernels& kernels(Isa isa);
CacheSizes cache_sizes();

}  // namespace sparseq::gemm
