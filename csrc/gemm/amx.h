// Matrix products on AMX: 32 rows by 32 channels, or 16, in tile registers over all inputs. A tile's rows of
// activations lie at one distance from each other. The output pixels of a line do; and so do all those of a block of
// lines where the lines of inputs are copied into a frame, with the padding, behind each other: the sums of the rows
// between a line's last output and the next line's first are computed in vain (7 x 7 outputs of 3 x 3 taps: 12 of 61).
// With a stride down of s a frame has every s-th line, one behind the other for each remainder. No torch here.
#pragma once
#include <cstdint>
#include <optional>

#include "gemm.h"

namespace sparseq::amx {

constexpr int64_t kInputs = 64;  // of a tile
constexpr int64_t kRows = 16;    // of a tile
constexpr int64_t kGroup = 32;   // output channels of a work item
constexpr int64_t kWidth = 16;   // of a tile, and of a panel
constexpr int64_t kPanels = kGroup / kWidth;

// How a block's rows are read.
struct Frame {
  bool copied = false;     // else where the input lies, each line of outputs by itself
  int64_t remainders = 1;  // of lines by the stride: so many frames
  int64_t reach = 0;       // lines of a frame that the taps need below the last output's
  int64_t pitch = 0;       // of a frame, rows from line to line
  int64_t pixel = 0;       // of a frame, bytes
  int64_t step = 1;        // pixels from row to row

  int64_t lines(int64_t out_lines) const { return out_lines + reach; }
  int64_t line_bytes() const { return pitch * step * pixel; }
  // With what tiles read behind the last row.
  int64_t bytes(int64_t out_lines) const {
    return (lines(out_lines) * line_bytes() + 2 * kRows * step * pixel + kInputs + 63) / 64 * 64;
  }
};

// conv: null where row m of outputs reads row m of the input.
Frame frame(const WeightShape& weight, const ConvShape* conv, int64_t rows);

// Items are (block, group of outputs), a block being row_block lines of outputs of some images, or rows without conv.
// None where rows are too few or a frame too large for the caches.
std::optional<WorkPlan> plan(const Tiles& weight, const ConvShape* conv, int64_t rows, const CacheSizes& caches,
                             int threads);

}  // namespace sparseq::amx
