// Weights as the GPU kernels read them: one run of bytes that a uint8 tensor holds. No torch, no device code.
//
//   header                                64 bytes
//   int32 sum of the weights              [outputs], int8 alone
//   tiles                                 [groups][blocks of 64 outputs][steps of the inputs]
//
// The inputs of an output are counted as (tap, channel), the channels of a tap filled up with zeros to a multiple
// of `unit`, the whole to whole steps. A step is 64 bytes of each output: 64 inputs of a dense weight, of a 2:4
// one 128 in int8 and 64 in 16 bits. So a tile is 4096 bytes of values, one run in memory, and for 2:4 the
// metadata of its mma.sp instructions: per lane the words of four instructions, next to each other.
//
// Row r of a tile holds output 8 (r % 8) + r / 8 of its block. The four mma tiles i of 16 rows then give lane
// 4 g + t the outputs 8 g + 2 i (rows g) and 8 g + 2 i + 1 (rows g + 8): eight neighbours, which it finishes and
// stores as one vector, without an exchange between lanes.
#pragma once

#include "tiles.h"

namespace sparseq::gemm::cuda {

constexpr int kBlock = 64;                   // outputs of a tile
constexpr int kLine = 64;                    // bytes of one of them
constexpr int kValueBytes = kBlock * kLine;  // of a tile
constexpr int kHeaderBytes = 64;
constexpr int32_t kCudaMagic = 0x53514c47;

constexpr int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

struct CudaTiling {
  TileKind kind;
  int element;  // bytes of a value
  WeightShape shape;
  int64_t unit;        // the channels of a tap are filled up to a multiple of this
  int64_t tap;         // elements of a tap, filled up
  int64_t step;        // inputs of a step
  int64_t steps = 0;   // of an output
  int64_t blocks = 0;  // of a group
  int64_t tile_bytes = 0;
  int64_t sums_at = kHeaderBytes, data_at, size;

  // element: 1 for int8; 2 for float16 and bfloat16, 2:4 only. kind depthwise: values as [tap][channel][output].
  CudaTiling(TileKind kind_, int element_, const WeightShape& shape_) : kind(kind_), element(element_), shape(shape_) {
    const bool sparse = kind == TileKind::sparse24;
    // A tap of at least 16 bytes is copied 16 at a time. Filling up the 3 channels of an image would waste 4/5.
    const int64_t whole = 16 / element;
    unit = shape.taps == 1 || shape.in_channels >= whole ? whole : 4;
    tap = rounded_up(shape.in_channels, unit);
    step = int64_t(kLine / element) * (sparse ? 2 : 1);
    data_at = sums_at + (element == 1 ? rounded_up(4 * outputs(), 256) : 192);
    int64_t bytes = outputs() * shape.taps * shape.in_channels;
    if (kind != TileKind::depthwise) {
      steps = rounded_up(shape.taps * tap, step) / step;
      blocks = rounded_up(shape.out_channels, kBlock) / kBlock;
      tile_bytes = kValueBytes + (sparse ? kValueBytes / 4 / element : 0);
      bytes = shape.groups * blocks * steps * tile_bytes;
    }
    // the size alone tells the kinds apart: to read the header a call would have to wait for the device
    size = rounded_up(data_at + bytes, 64) + 16 * (1 + int64_t(kind));
  }
  int64_t outputs() const { return shape.groups * shape.out_channels; }
  int64_t inputs() const { return shape.taps * shape.in_channels; }
};

}  // namespace sparseq::gemm::cuda
