// How rows of activations, or the windows of a convolution, come into shared memory. No torch header.
//
// A tile holds kRows rows of kStep bytes (64, dense; 128, 2:4), in chunks of 16. Chunk c of row r lies at the
// place c ^ swizzle(r) of its row: so the eight rows of a matrix that ldmatrix reads, and the chunks that a warp
// copies, fall on different banks.
#pragma once

#include "../core/device.cuh"
#include "launch.h"
#include "mma.cuh"

namespace sparseq::gemm {
namespace {

constexpr int kChunk = 16;

// 64 bytes: two rows cover the banks, 128 bytes: one does.
template <int kStep>
__device__ __forceinline__ uint32_t place(int row, int chunk) {
  return uint32_t(row * kStep + ((chunk ^ (kStep == 64 ? row >> 1 & 3 : row & 7)) * kChunk));
}

// Where the bytes of a row come from. All kernels read [0, bytes) of a tap; what is past is filled with zeros,
// and meets weights of 0.
struct Window {
  const uint8_t* x;
  int64_t stride;  // bytes from pixel to pixel
  int64_t count;   // rows of the product
  int32_t bytes;   // of a tap, in one group
  int32_t tap;     // filled up, as the weights are
  int32_t taps;
  int64_t group_bytes;  // from a group's channels to the next group's
  const int32_t* zero;
  bool words;  // pixels and groups start at multiples of 4
  // convolutions
  int32_t height, width, kernel_width;
  int32_t stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x;
  Divider out_width{1}, out_height{1};
};

enum class Source {
  rows,     // 16 bytes at a time, of a row
  windows,  // likewise, of an image
  any,      // 4 bytes at a time, rows or images, of any alignment: slow
};

// The first pixel that a row's window covers; it may lie outside. Without a row, all of the window does: images with
// their padding have less than 2^30 lines and columns.
struct Corner {
  int64_t pixel = 0;
  int32_t y = -(1 << 30), x = 0;
  __device__ __forceinline__ Corner() {}
  __device__ __forceinline__ Corner(const Window& w, int64_t m) {
    const int64_t line = w.out_width.divide(m), image = w.out_height.divide(line);
    y = int32_t(line - image * w.out_height.divisor) * w.stride_y - w.pad_y;
    x = int32_t(m - line * w.out_width.divisor) * w.stride_x - w.pad_x;
    pixel = (image * w.height + y) * w.width + x;
  }
  // of a tap: whether it is inside, and which pixel
  __device__ __forceinline__ bool inside(const Window& w, int dy, int dx) const {
    return uint32_t(y + dy) < uint32_t(w.height) && uint32_t(x + dx) < uint32_t(w.width);
  }
  __device__ __forceinline__ int64_t at(const Window& w, int dy, int dx) const {
    return pixel + int64_t(dy) * w.width + dx;
  }
};

// The part of the copying that one of kThreads threads does: always the same chunk, of kEach rows.
template <Source kSource, int kStep, int kRows, int kThreads>
class Loader {
  static constexpr int kChunks = kStep / kChunk, kBetween = kThreads / kChunks, kEach = kRows / kBetween;
  static_assert(kEach * kBetween == kRows && kBetween % 8 == 0);

 public:
  // from row m on; the first tile will be that of step `first`
  __device__ __forceinline__ Loader(const Window& w, int group, int64_t m, int first)
      : chunk_(int(threadIdx.x) % kChunks), row_(int(threadIdx.x) / kChunks) {
    x_ = w.x + group * w.group_bytes;
    const int at = first * kStep + chunk_ * kChunk;
    channel_ = kSource == Source::windows ? at % w.tap : at;
    if constexpr (kSource != Source::rows) {
      const int tap = kSource == Source::windows ? at / w.tap : 0;
      dy_ = tap / w.kernel_width * w.dilation_y;
      dx_ = tap % w.kernel_width * w.dilation_x;
      zero_ = w.zero != nullptr ? uint32_t(__ldg(w.zero) & 255) * 0x01010101u : 0;
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int64_t r = m + row_ + int64_t(i * kBetween);
      if constexpr (kSource == Source::rows) {
        const uint8_t* at = x_ + r * w.stride;
        rows_[i] = r < w.count ? at : nullptr;
      } else if (r < w.count) {
        corners_[i] = Corner(w, r);
      }
    }
  }

  // Starts the copies of the next tile, whose rows begin at `to` in shared memory.
  __device__ __forceinline__ void next(const Window& w, uint32_t to) {
    if constexpr (kSource == Source::any) return next_bytes(w, to);
    to += place<kStep>(row_, chunk_);
    const int left = w.bytes - channel_, size = left < 0 ? 0 : left < kChunk ? left : kChunk;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const uint32_t at = to + uint32_t(i * kBetween * kStep);  // the swizzle repeats after 8 rows
      if constexpr (kSource == Source::rows) {
        const bool some = rows_[i] != nullptr && size > 0;
        copy_16(at, some ? rows_[i] + channel_ : x_, some ? size : 0);
      } else if (!corners_[i].inside(w, dy_, dx_)) {
        store_16(at, zero_);
      } else {
        copy_16(at, size > 0 ? x_ + corners_[i].at(w, dy_, dx_) * w.stride + channel_ : x_, size);
      }
    }
    channel_ += kStep;
    if constexpr (kSource == Source::windows) {
      while (channel_ >= w.tap) {
        channel_ -= w.tap;
        dx_ += w.dilation_x;
        if (dx_ >= w.kernel_width * w.dilation_x) dx_ = 0, dy_ += w.dilation_y;
      }
    }
  }

 private:
  __device__ __forceinline__ void next_bytes(const Window& w, uint32_t to) {
#pragma unroll 1
    for (int unit = 0; unit < kChunk; unit += 4) {
      const int at = channel_ + unit, tap = at / w.tap, channel = at - tap * w.tap;
      const int dy = tap / w.kernel_width * w.dilation_y, dx = tap % w.kernel_width * w.dilation_x;
      const int left = w.bytes - channel, size = tap >= w.taps || left < 0 ? 0 : left < 4 ? left : 4;
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const uint32_t here = to + place<kStep>(row_ + i * kBetween, chunk_) + uint32_t(unit);
        if (size == 0) {
          store_4(here, 0);
        } else if (!corners_[i].inside(w, dy, dx)) {
          store_4(here, zero_);
        } else {
          const uint8_t* from = x_ + corners_[i].at(w, dy, dx) * w.stride + channel;
          if (w.words) {
            copy_4(here, from, size);
          } else {
            uint32_t word = 0;
#pragma unroll
            for (int b = 0; b < 4; ++b)
              if (b < size) word |= uint32_t(__ldg(from + b)) << (8 * b);
            store_4(here, word);
          }
        }
      }
    }
    channel_ += kStep;
  }

  const uint8_t* x_;
  int chunk_, row_;
  int32_t channel_;  // of the tap; any: of all taps
  int32_t dy_ = 0, dx_ = 0;
  uint32_t zero_ = 0;
  const uint8_t* rows_[kEach];
  Corner corners_[kEach];
};

}  // namespace
}  // namespace sparseq::gemm
