// The kernels of histogram on a GPU. No torch header. Counters are 32-bit numbers in shared memory, several sets of
// them where they fit, so that equal neighbours meet less often; a task adds them to the result when it is through.
// All of it is integers: the order of the additions changes nothing.
#pragma once

#include "../core/device.cuh"
#include "affine.h"
#include "formula.h"

namespace sparseq::affine {
namespace {

constexpr int kCountThreads = 256;

// Both kernels' operands. The counts are those of [channels, bins], and zero before.
struct Counts {
  const float* limit;
  unsigned long long* counts;
  int64_t channels;
  int log2_bins;
  __device__ __forceinline__ int bins() const { return 1 << log2_bins; }
  __device__ __forceinline__ float inverse(int64_t channel) const { return 1.0f / limit[channel]; }
  __device__ __forceinline__ int bin(float x, float inverse) const {
    const formula::Bins<float> constants{0.5f * float(bins()), 0.0f, 1.0f, __builtin_huge_valf()};
    return int(formula::bin(x, inverse, constants));
  }
  __device__ __forceinline__ void add(int64_t channel, int bin, uint32_t count) const {
    atomicAdd(counts + (channel << log2_bins) + bin, static_cast<unsigned long long>(count));
  }
};

// A task counts `tile` neighbouring channels in some of their positions. The positions of a tile are those of
// outer runs of tile * inner elements, stride apart; the last tile may lack channels.
struct CountTasks {
  int64_t tasks, positions, each, stride;
  int tile, copies;  // copies: a power of two
  Divider tiles, span, inner;
};

// N neighbours, and which channel of the tile each is of, kMany: more than one.
template <int N, bool kMany, class T>
__device__ __forceinline__ void count_some(const Counts& c, const CountTasks& t, const T* x, int64_t within,
                                           const float* inverses, uint32_t* own) {
  float v[N];
  load<N>(x, v);
  const int pitch = c.bins() + 1, step = t.copies * pitch;
  if constexpr (kMany) {
    const int64_t inner = t.inner.divisor;
    int channel = int(t.inner.divide(within));
    int64_t left = inner - (within - channel * inner);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      if (left == 0) {
        left = inner;
        ++channel;
      }
      --left;
      atomicAdd(own + size_t(channel * step + c.bin(v[k], inverses[channel])), 1u);
    }
  } else {
#pragma unroll
    for (int k = 0; k < N; ++k) atomicAdd(own + c.bin(v[k], inverses[0]), 1u);
  }
}

// In shared memory: 1 / limit of the tile's channels, then tile * copies sets of bins + 1 counters, the last for NaN.
template <int N, bool kMany, class T>
__global__ void __launch_bounds__(kCountThreads) count(Counts c, CountTasks t, const T* x) {
  extern __shared__ uint32_t shared[];
  float* inverses = reinterpret_cast<float*>(shared);
  uint32_t* counters = shared + t.tile;
  const int bins = c.bins(), pitch = bins + 1, all = t.tile * t.copies * pitch;
  uint32_t* own = counters + size_t(int(threadIdx.x & unsigned(t.copies - 1)) * pitch);
  for (int64_t task = blockIdx.x; task < t.tasks; task += gridDim.x) {
    const int64_t part = t.tiles.divide(task), channel = (task - part * t.tiles.divisor) * t.tile;
    const int channels = int(c.channels - channel < t.tile ? c.channels - channel : t.tile);
#pragma unroll 1
    for (int i = threadIdx.x; i < all; i += kCountThreads) counters[i] = 0;
#pragma unroll 1
    for (int i = threadIdx.x; i < channels; i += kCountThreads) inverses[i] = c.inverse(channel + i);
    __syncthreads();

    const int64_t begin = part * t.each;
    const int64_t end = begin + t.each < t.positions ? begin + t.each : t.positions;
    const T* from = x + channel * t.inner.divisor;
    for (int64_t i = begin + int64_t(threadIdx.x) * N; i < end; i += int64_t(kCountThreads) * N) {
      const int64_t run = t.span.divide(i), within = i - run * t.span.divisor;
      if (kMany && within >= channels * t.inner.divisor) continue;  // of channels that the tile lacks
      const T* at = from + run * t.stride + within;
      if (N > 1 && !kMany && i + N > end) {  // fewer than N: of one long run
#pragma unroll 1
        for (int64_t k = 0; k < end - i; ++k) count_some<1, kMany>(c, t, at + k, within + k, inverses, own);
      } else {
        count_some<N, kMany>(c, t, at, within, inverses, own);
      }
    }
    __syncthreads();

#pragma unroll 1
    for (int i = threadIdx.x; i < channels << c.log2_bins; i += kCountThreads) {
      const uint32_t* set = counters + size_t((i >> c.log2_bins) * t.copies * pitch + (i & (bins - 1)));
      uint32_t sum = 0;
#pragma unroll 1
      for (int k = 0; k < t.copies; ++k) sum += set[size_t(k * pitch)];
      if (sum != 0) c.add(channel + (i >> c.log2_bins), i & (bins - 1), sum);
    }
    __syncthreads();  // before the next task clears them
  }
}

// Bins that shared memory does not hold, or more of them than values: straight to the result.
template <class T>
__global__ void __launch_bounds__(kCountThreads)
    count_straight(Counts c, Divider inner, Divider channels, const T* x, int64_t numel) {
  const int64_t stride = int64_t(gridDim.x) * kCountThreads;
  for (int64_t i = int64_t(blockIdx.x) * kCountThreads + threadIdx.x; i < numel; i += stride) {
    const int64_t channel = channels.remainder(inner.divide(i));
    float v[1];
    load<1>(x + i, v);
    const int bin = c.bin(v[0], c.inverse(channel));
    if (bin < c.bins()) c.add(channel, bin, 1);
  }
}

}  // namespace
}  // namespace sparseq::affine
