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
  static void build(const sparseq::Input& input, int64_t channel, int64_t taps, int tile, int64_t row0, int64_t rows,
                    const uint8_t** table) {
    if (input.conv == nullptr) {
      each(tile, rows, [&](int64_t first, int r, int64_t row) {
        table[first * taps + r] = input.data + (row0 + row) * input.stride + channel;
      });
      return;
    }
    const sparseq::ConvShape& s = *input.conv;
    int64_t x = row0 % s.out_width, y = row0 / s.out_width % s.out_height, image = row0 / s.out_width / s.out_height;
    int64_t at = 0;
    each(tile, rows, [&](int64_t first, int r, int64_t row) {
      for (; at < row; ++at) {  // the next pixel, without a division
        if (++x < s.out_width) continue;
        x = 0;
        if (++y < s.out_height) continue;
        y = 0, ++image;
      }
      pixel(input, s, channel, tile, x, y, image, table + first * taps + r);
    });
  }

 private:
  // f(first row of the tile, row in the tile, row): rows past the end repeat the last one.
  template <class F>
  static void each(int tile, int64_t rows, F f) {
    for (int64_t first = 0; first < rows; first += tile)
      for (int r = 0; r < tile; ++r) f(first, r, smaller(first + r, rows - 1));
  }

  static void pixel(const sparseq::Input& input, const sparseq::ConvShape& s, int64_t channel, int tile, int64_t x,
                    int64_t y, int64_t image, const uint8_t** entry) {
    const int64_t left = x * s.stride_width - s.pad_left, top = y * s.stride_height - s.pad_top;
    const int64_t pitch = input.line != 0 ? input.line : s.width;
    const int64_t step = s.dilation_width * input.stride, line = s.dilation_height * pitch * input.stride;
    const int64_t first = ((image * s.height + top) * pitch + left) * input.stride + channel;
    if (left >= 0 && top >= 0 && left + (s.kernel_width - 1) * s.dilation_width < s.width &&
        top + (s.kernel_height - 1) * s.dilation_height < s.height) {
      const uint8_t* from = input.data + first;
      for (int64_t i = 0; i < s.kernel_height; ++i, from += line)
        for (int64_t j = 0; j < s.kernel_width; ++j, entry += tile) *entry = from + j * step;
      return;
    }
    for (int64_t i = 0; i < s.kernel_height; ++i) {
      const int64_t row = top + i * s.dilation_height;
      for (int64_t j = 0; j < s.kernel_width; ++j, entry += tile) {
        const int64_t column = left + j * s.dilation_width;
        const bool inside = row >= 0 && row < s.height && column >= 0 && column < s.width;
        *entry = inside ? input.data + first + i * line + j * step : input.padding;
      }
    }
  }
};

}  // namespace
