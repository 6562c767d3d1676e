// Rows of floats -> bytes, each row on its own grid ("per token"). One pass over memory where a row fits into the
// registers of its threads, which it does up to kHeld values each; two where it is longer. No torch header.
#pragma once

#include "../core/device.cuh"

// after the trait that it is written over
#include "../affine/formula.h"
#include "launch.h"

namespace sparseq::gemm {
namespace {

constexpr int kHeld = 32;

struct Range {
  float least, most;
  // where one is NaN, the other: a NaN of x is left out
  __device__ __forceinline__ void add(float x) {
    least = min(x, least);
    most = max(x, most);
  }
};

// kThreads, a warp or a block, share a row. They all get the whole range.
template <int kThreads>
__device__ __forceinline__ Range across(Range r) {
  for (int distance = 16; distance > 0; distance /= 2) {
    r.add(__shfl_xor_sync(~0u, r.least, distance));
    r.add(__shfl_xor_sync(~0u, r.most, distance));
  }
  if constexpr (kThreads > 32) {
    __shared__ Range of_warp[kThreads / 32];
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = r;
    __syncthreads();
    for (int w = 0; w < kThreads / 32; ++w) {
      r.add(of_warp[w].least);
      r.add(of_warp[w].most);
    }
  }
  return r;
}

// The scale of a row that is all zero, or whose scale would not be a positive finite number, is 1.
__device__ __forceinline__ float usable(float scale) {
  return scale > 0.0f && scale < __builtin_huge_valf() ? scale : 1.0f;
}

__device__ __forceinline__ formula::Params<float> grid_of(Range r, float low, float high) {
  if (low < 0.0f) {
    const float scale = usable((r.most > -r.least ? r.most : -r.least) / high);
    return {scale, 0.0f, -high, high};
  }
  const float scale = usable((r.most - r.least) / (high - low));
  const float zero = round(min(max(low - r.least / scale, low), high));
  return {scale, zero, low - zero, high - zero};
}

// N: values of one access; kThreads of a row; blocks of 256. Two of them on a multiprocessor: unasked, ptxas spills on
// sm_100 to fit more.
template <class T, int N, int kThreads>
__global__ void __launch_bounds__(256, 2) quantize_rows(const cuda::RowGrid g) {
  constexpr int kSteps = kHeld / N;
  constexpr bool kAllHeld = kThreads == 32;  // the launcher gives a warp no longer row than that
  const int64_t m = int64_t(blockIdx.x) * (256 / kThreads) + threadIdx.x / kThreads;
  const int lane = int(threadIdx.x) % kThreads;
  if (m >= g.rows) return;  // whole warps, or the whole block
  const T* x = static_cast<const T*>(g.x) + m * g.stride;
  uint8_t* q = g.q + m * g.q_stride;
  const int64_t past = int64_t(lane) * N + int64_t(kSteps) * kThreads * N;  // where what is not held begins
  Range r{0.0f, 0.0f};
  float held[kSteps][N];
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int64_t c = (int64_t(s) * kThreads + lane) * N;
#pragma unroll
    for (int k = 0; k < N; ++k) held[s][k] = 0.0f;
    if (c < g.columns) load<N>(x + c, held[s]);  // columns are a multiple of N
#pragma unroll
    for (int k = 0; k < N; ++k) r.add(held[s][k]);
  }
#pragma unroll 1
  for (int64_t c = past; !kAllHeld && c < g.columns; c += int64_t(kThreads * N)) {
    float v[N];
    load<N>(x + c, v);
#pragma unroll
    for (int k = 0; k < N; ++k) r.add(v[k]);
  }
  r = across<kThreads>(r);
  const formula::Params<float> grid = grid_of(r, float(g.low), float(g.high));
  if (lane == 0) {
    g.scale[m] = grid.scale;
    if (g.zero != nullptr) g.zero[m] = int32_t(grid.zero);
  }
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int64_t c = (int64_t(s) * kThreads + lane) * N;
    if (c >= g.columns) break;
#pragma unroll
    for (int k = 0; k < N; ++k) held[s][k] = formula::quantize(held[s][k], grid);
    store<N>(q + c, held[s]);
  }
#pragma unroll 1
  for (int64_t c = past; !kAllHeld && c < g.columns; c += int64_t(kThreads * N)) {
    float v[N];
    load<N>(x + c, v);
#pragma unroll
    for (int k = 0; k < N; ++k) v[k] = formula::quantize(v[k], grid);
    store<N>(q + c, v);
  }
  for (int64_t c = g.columns + lane; c < g.q_stride; c += kThreads) q[c] = 0;
}

}  // namespace
}  // namespace sparseq::gemm
