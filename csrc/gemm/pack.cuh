// Weights into the tiles of cuda_tiles.h, on the device: they need not leave it during sparse training. No torch
// header. Done once for each weight, so written plainly: a thread makes one chunk of 16 bytes of values (two, in 16
// bits) and the word of metadata that belongs to it.
#pragma once

#include "../core/device.cuh"
#include "launch.h"

namespace sparseq::gemm {
namespace {

constexpr int kPackThreads = 256;

struct PackShape {
  explicit PackShape(const cuda::CudaTiling& t)
      : out_channels(t.shape.out_channels),
        in_channels(t.shape.in_channels),
        taps(t.shape.taps),
        tap(t.tap),
        steps(t.steps),
        blocks(t.blocks),
        tile_bytes(t.tile_bytes),
        tiles(t.shape.groups * t.blocks * t.steps) {}
  int64_t out_channels, in_channels, taps, tap, steps, blocks, tile_bytes, tiles;

  // The output (of all groups) of row r of a tile, or -1.
  __device__ __forceinline__ int64_t output(int64_t tile, int r) const {
    const int64_t block = tile / steps, o = block % blocks * cuda::kBlock + int64_t(r % 8 * 8 + r / 8);
    return o < out_channels ? block / blocks * out_channels + o : -1;
  }
};

// Two values of a group of four inputs, and where they stood.
template <class T>
struct Two {
  T first, second;
  uint32_t nibble;
};

// The dense weight [outputs][in_channels][taps], 2:4 where it is read by groups.
struct FromDense {
  using Value = int8_t;
  const int8_t* weight;
  __device__ __forceinline__ int8_t at(const PackShape& s, int64_t output, int64_t k) const {
    const int64_t t = k / s.tap, c = k % s.tap;
    if (output < 0 || t >= s.taps || c >= s.in_channels) return 0;
    return weight[(output * s.in_channels + c) * s.taps + t];
  }
  __device__ __forceinline__ Two<int8_t> two(const PackShape& s, int64_t output, int64_t k) const {
    int8_t w[4];
    int first = 2, last = -1;
#pragma unroll
    for (int i = 3; i >= 0; --i) {
      w[i] = at(s, output, k + i);
      if (w[i] != 0) {
        if (last < 0) last = i;
        if (i < 2) first = i;
      }
    }
    const int second = last > first ? last : first < 2 ? 2 : 3;
    int8_t a = 0, b = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i == first) a = w[i];
      if (i == second) b = w[i];
    }
    return {a, b, uint32_t(first | second << 2)};
  }
};

// The canonical form, rows of (output, tap); T: the bits of a value.
template <class T>
struct FromCanonical {
  using Value = T;
  const T* values;
  const uint8_t* indices;
  int64_t groups;  // of a row
  __device__ __forceinline__ Two<T> two(const PackShape& s, int64_t output, int64_t k) const {
    const int64_t t = k / s.tap, g = k % s.tap / 4;
    if (output < 0 || t >= s.taps || g >= groups) return {0, 0, 4};
    const int64_t row = output * s.taps + t;
    const T* v = values + (row * groups + g) * 2;
    uint32_t nibble = indices[row * ((groups + 1) / 2) + g / 2] >> (4 * (g % 2)) & 15;
    // mma.sp knows ascending pairs only; any other is not 2:4, and made harmless
    if ((nibble & 3) >= nibble >> 2) nibble = 4;
    return {v[0], v[1], nibble};
  }
};

__global__ void __launch_bounds__(kPackThreads) pack_dense(FromDense from, PackShape s, uint8_t* tiles) {
  const int64_t i = int64_t(blockIdx.x) * kPackThreads + threadIdx.x, tile = i / kPackThreads;
  if (tile >= s.tiles) return;
  const int q = int(i % kPackThreads), r = q / 4;
  const int64_t output = s.output(tile, r), k = tile % s.steps * cuda::kLine + int64_t(q % 4 * 16);
  uint8_t values[16];
#pragma unroll
  for (int b = 0; b < 16; ++b) values[b] = uint8_t(from.at(s, output, k + b));
  uint4 chunk;
  memcpy(&chunk, values, 16);
  *reinterpret_cast<uint4*>(tiles + tile * s.tile_bytes + int64_t(q * 16)) = chunk;
}

// Thread (lane 4 g + t, mma tile i, word w) of a tile; see the metadata of mma.cuh. Its inputs are
//   int8:     output row 16 i + g + 8 (t % 2), chunk 2 w + t / 2 of the line: 8 groups
//   16 bits:  output rows 16 i + g and + 8, chunk t: 4 groups each
template <class From>
__global__ void __launch_bounds__(kPackThreads) pack_sparse(From from, PackShape s, uint8_t* tiles) {
  using T = typename From::Value;
  constexpr int kWords = sizeof(T) == 1 ? 2 : 1, kRows = 3 - kWords, kGroups = 8 / kRows;
  constexpr int kThreads = 32 * 4 * kWords;  // of a tile
  const int64_t i = int64_t(blockIdx.x) * kPackThreads + threadIdx.x, tile = i / kThreads;
  if (tile >= s.tiles) return;
  const int q = int(i % kThreads), lane = q / (4 * kWords), part = q / kWords % 4, word = q % kWords;
  const int g = lane / 4, t = lane % 4, chunk = kWords == 2 ? word * 2 + t / 2 : t;
  uint8_t* to = tiles + tile * s.tile_bytes;
  uint32_t metadata = 0;
#pragma unroll
  for (int h = 0; h < kRows; ++h) {
    const int r = 16 * part + g + 8 * (kRows == 2 ? h : t % 2);
    const int64_t output = s.output(tile, r), k = (tile % s.steps * 4 + chunk) * kGroups * 4;
    T values[2 * kGroups];
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
      const Two<T> two = from.two(s, output, k + int64_t(4 * n));
      values[2 * n] = two.first, values[2 * n + 1] = two.second;
      metadata |= two.nibble << (4 * (h * kGroups + n));
    }
    uint4 out;
    memcpy(&out, values, 16);
    *reinterpret_cast<uint4*>(to + int64_t(r * cuda::kLine) + int64_t(chunk * 16)) = out;
  }
  reinterpret_cast<uint32_t*>(to + cuda::kValueBytes)[q] = metadata;
}

// [outputs][in_channels][taps] -> [taps][in_channels][outputs], for neighbours to be read by neighbours.
__global__ void __launch_bounds__(kPackThreads)
    pack_plain(const int8_t* weight, int64_t outputs, int64_t channels, int64_t taps, int8_t* to) {
  const int64_t i = int64_t(blockIdx.x) * kPackThreads + threadIdx.x;
  if (i >= outputs * channels * taps) return;
  const int64_t o = i % outputs, c = i / outputs % channels, t = i / outputs / channels;
  to[i] = weight[(o * channels + c) * taps + t];
}

// A warp adds up the weights of one output, which are next to each other in every form, and writes the header.
__global__ void __launch_bounds__(kPackThreads)
    pack_sums(const int8_t* values, int64_t outputs, int64_t each, int32_t kind, uint8_t* tiles) {
  const int64_t o = int64_t(blockIdx.x) * (kPackThreads / 32) + threadIdx.x / 32;
  if (blockIdx.x == 0 && threadIdx.x < cuda::kHeaderBytes / 4)
    reinterpret_cast<int32_t*>(tiles)[threadIdx.x] = threadIdx.x == 0 ? cuda::kCudaMagic : threadIdx.x == 1 ? kind : 0;
  if (o >= outputs) return;
  int32_t sum = 0;
  for (int64_t k = threadIdx.x % 32; k < each; k += 32) sum += values[o * each + k];
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
  if (threadIdx.x % 32 == 0) reinterpret_cast<int32_t*>(tiles + cuda::kHeaderBytes)[o] = sum;
}

}  // namespace
}  // namespace sparseq::gemm
