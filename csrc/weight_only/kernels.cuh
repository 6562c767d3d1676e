// The weight-only products on a GPU, for few rows of x: written once over what a weight is (int4.cuh, sparse.cuh).
// No torch header.
//
// A block computes kOutputs outputs of kRows rows; its threads share out the columns, a step of a weight each in
// turn, so that neighbours read neighbouring bytes. Every thread asks for the weights of all its outputs before it
// needs the first: that keeps memory busy. x is read again for each block, from the cache.
#pragma once

#include <algorithm>

#include "../core/device.cuh"
#include "launch.h"

namespace sparseq::weight_only {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int kOutputs = 4;   // of a block: so often a value of x is used once it is in a register
constexpr int kTogether = 4;  // rows of x at once, where there is more than one

struct Task {
  const void* x;
  int64_t count, depth, outputs;
  const float* bias;
  void* y;
  int64_t steps;   // of an output's weights
  Divider panels;  // of kRows rows: blocks of one panel after another, so that they share the weight
};

template <int kRows>
using Sums = float[kOutputs][kRows];

// Eight neighbours of a row of x, as floats.
__device__ __forceinline__ void load_8(const float* from, float (&to)[8]) {
  float half[4];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    load<4>(from + int64_t(4 * h), half);
#pragma unroll
    for (int k = 0; k < 4; ++k) to[4 * h + k] = half[k];
  }
}
template <class T>
__device__ __forceinline__ void load_8(const T* from, float (&to)[8]) {
  load<8>(from, to);
}

// The sums of a block's threads, in a fixed order: lanes 16, 8, 4, 2, 1 apart, then warp after warp.
template <class T, int kRows>
__device__ __forceinline__ void finish(const Task& task, Sums<kRows>& sums, int64_t output, int64_t row) {
  __shared__ float of_warp[kWarps][kOutputs * kRows];
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
#pragma unroll
  for (int r = 0; r < kOutputs; ++r)
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      float sum = sums[r][m];
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
      if (lane == 0) of_warp[warp][r * kRows + m] = sum;
    }
  __syncthreads();
  const int at = int(threadIdx.x), m = at % kRows;
  const int64_t n = output + at / kRows;
  if (at >= kOutputs * kRows || n >= task.outputs || row + m >= task.count) return;
  float y = of_warp[0][at];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) y += of_warp[w][at];
  if (task.bias != nullptr) y += __ldg(task.bias + n);
  const float one[1] = {y};
  store<1>(static_cast<T*>(task.y) + (row + m) * task.outputs + n, one);
}

// Weight: kColumns of a step; Step, what a thread reads of one output for it; step(output, i); and
// add(steps, first column, rows of x, sums). Blocks of a multiprocessor: so many, or ptxas spills to fit more.
template <class Weight, class T, int kRows>
__global__ void __launch_bounds__(kThreads, kRows == 1 ? 6 : 3) product(const Task given, const Weight given_weight) {
  const Task task = at_once(given);
  const Weight weight = at_once(given_weight);
  const int64_t block = task.panels.divide(blockIdx.x), output = block * kOutputs;
  const int64_t row = (int64_t(blockIdx.x) - block * task.panels.divisor) * kRows;
  const T* x[kRows];  // rows and outputs past the last one are the last one again, and thrown away
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    const int64_t here = row + m < task.count ? row + m : task.count - 1;
    x[m] = static_cast<const T*>(task.x) + here * task.depth;
  }
  Sums<kRows> sums = {};
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < task.steps; i += kThreads) {
    typename Weight::Step steps[kOutputs];
#pragma unroll
    for (int r = 0; r < kOutputs; ++r) {
      const int64_t n = output + r < task.outputs ? output + r : task.outputs - 1;
      steps[r] = weight.step(n, i);
    }
    weight.template add<T, kRows>(steps, i * Weight::kColumns, x, sums);
  }
  finish<T, kRows>(task, sums, output, row);
}

// T: of x and y. More rows than a grid has room for take several.
template <class T, int kRows, class Weight>
void launch(const cuda::Linear& l, const Weight& weight, int64_t steps, cudaStream_t stream) {
  const int64_t blocks = (l.outputs + kOutputs - 1) / kOutputs;
  const int64_t most = std::max<int64_t>(1, INT32_MAX / blocks) * kRows;
  for (int64_t row = 0; row < l.count; row += most) {
    const int64_t count = std::min(most, l.count - row), panels = (count + kRows - 1) / kRows;
    const Task task{static_cast<const T*>(l.x) + row * l.depth, count, l.depth,        l.outputs, l.bias,
                    static_cast<T*>(l.y) + row * l.outputs,     steps, Divider(panels)};
    product<Weight, T, kRows><<<unsigned(panels * blocks), kThreads, 0, stream>>>(task, weight);
  }
}

template <class F>
void by_type(Element type, F f) {
  switch (type) {
    case Element::f16: return f(Half{});
    case Element::bf16: return f(BFloat16{});
    default: return f(float{});
  }
}

inline bool multiple(const void* p, int64_t of) { return reinterpret_cast<uintptr_t>(p) % size_t(of) == 0; }

}  // namespace
}  // namespace sparseq::weight_only
