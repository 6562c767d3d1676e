// Where a convolution's inputs lie: the indirection that makes it a matrix product.
#pragma once
#include <cstdint>

#include "gemm.h"

namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// One pointer per (tile, tap, row of the tile).
// Pixels outside the image point to a pixel of zero points. Rows past the end repeat the last row.
class RowPointers {
 public:
  static constexpr int64_t kSlack = 16;  // pointers that may be written after the table's last

  static void build(const sparseq::Input& input, int64_t channel, int64_t taps, int tile, int64_t row0, int64_t rows,
                    const uint8_t** table) {
    const uint8_t* origin = input.data + channel;
    if (input.conv == nullptr) {
      for (int64_t first = 0; first < rows; first += tile)
        for (int r = 0; r < tile; ++r)
          table[first * taps + r] = origin + (row0 + smaller(first + r, rows - 1)) * input.stride;
      return;
    }
    const sparseq::ConvShape& s = *input.conv;
    const int64_t pitch = input.line != 0 ? input.line : s.width;
    const int64_t step = s.dilation_width * input.stride, line = s.dilation_height * pitch * input.stride;
    Pixel pixel{row0 % s.out_width, row0 / s.out_width % s.out_height, row0 / s.out_width / s.out_height};
    Corners corners(origin);
    const auto fill = tile > kMost / 2 ? Corners::fill<kMost> : Corners::fill<kMost / 2>;
    for (int64_t first = 0; first < rows; first += tile) {
      for (int r = 0; r < tile; ++r) {
        const int64_t x = pixel.x * s.stride_width - s.pad_left, y = pixel.y * s.stride_height - s.pad_top;
        corners.put(r, x, y, origin + ((pixel.image * s.height + y) * pitch + x) * input.stride);
        if (first + r < rows - 1) pixel.advance(s);
      }
      fill(corners, tile, s, line, step, input.padding, table + first * taps);
    }
  }

 private:
  static constexpr int kMost = 16;  // rows of a tile

  struct Pixel {
    int64_t x, y, image;
    void advance(const sparseq::ConvShape& s) {
      if (++x < s.out_width) return;
      x = 0;
      if (++y < s.out_height) return;
      y = 0, ++image;
    }
  };

  // The first tap of every row of a tile. One tap of all rows at a time, in loops of a known length: what a shorter
  // tile has too much the next tap writes over.
  struct Corners {
    alignas(64) const uint8_t* at[kMost];
    alignas(64) int64_t x[kMost] = {}, y[kMost] = {};

    explicit Corners(const uint8_t* anywhere) {
      for (auto& each : at) each = anywhere;
    }
    void put(int r, int64_t column, int64_t row, const uint8_t* pointer) { x[r] = column, y[r] = row, at[r] = pointer; }

    template <int kRows>
    static void fill(const Corners& of, int tile, const sparseq::ConvShape& s, int64_t line, int64_t step,
                     const uint8_t* padding, const uint8_t** entry) {
      const bool inside = of.inside(tile, s);
      for (int64_t i = 0; i < s.kernel_height; ++i)
        for (int64_t j = 0; j < s.kernel_width; ++j, entry += tile) {
          const int64_t offset = i * line + j * step;
          if (inside)
            for (int r = 0; r < kRows; ++r) entry[r] = of.at[r] + offset;
          else
            of.tap<kRows>(s, i * s.dilation_height, j * s.dilation_width, offset, padding, entry);
        }
    }

   private:
    bool inside(int tile, const sparseq::ConvShape& s) const {
      const int64_t columns = s.width - (s.kernel_width - 1) * s.dilation_width;
      const int64_t lines = s.height - (s.kernel_height - 1) * s.dilation_height;
      bool all = true;
      for (int r = 0; r < tile; ++r) all &= x[r] >= 0 && x[r] < columns && y[r] >= 0 && y[r] < lines;
      return all;
    }
    template <int kRows>
    void tap(const sparseq::ConvShape& s, int64_t down, int64_t right, int64_t offset, const uint8_t* padding,
             const uint8_t** entry) const {
      for (int r = 0; r < kRows; ++r) {
        const bool within = uint64_t(x[r] + right) < uint64_t(s.width) && uint64_t(y[r] + down) < uint64_t(s.height);
        entry[r] = within ? at[r] + offset : padding;
      }
    }
  };
};

}  // namespace
