// The affine kernels on a GPU. No torch header. One thread handles `width` neighbours of the tensor in
// memory order, as many as make the widest operand's access 16 bytes, or one where a pointer is not
// aligned for that. Sizes and positions are 64-bit throughout.
#pragma once

#include "../core/device.cuh"
#include "affine.h"
#include "formula.h"

namespace sparseq::affine {
namespace {

using Parameters = formula::Params<float>;

constexpr int kThreads = 256;

template <class T>
constexpr int kWidth = kVectorBytes / int(sizeof(T));

// Problem, with its divisions prepared: which parameters belong to which position.
struct Spread {
  explicit Spread(const Problem& p)
      : scale(p.scale),
        zero_point(p.zero_point),
        kind(p.zero_point_kind),
        quant_min(p.quant_min),
        quant_max(p.quant_max),
        inner(p.layout.inner),
        channels(p.layout.channels) {}

  __device__ __forceinline__ float zero(int64_t channel) const {
    float z = 0;
    if (kind == ZeroPointKind::int32)
      z = float(static_cast<const int32_t*>(zero_point)[channel]);
    else if (kind == ZeroPointKind::float32)
      z = round(static_cast<const float*>(zero_point)[channel]);
    return min(quant_max, max(quant_min, keep(ordered(z), z)));
  }
  __device__ __forceinline__ Parameters of(int64_t channel) const {
    const float z = zero(channel);
    return {scale[channel], z, quant_min - z, quant_max - z};
  }
  __device__ __forceinline__ int64_t channel_at(int64_t i) const { return channels.remainder(inner.divide(i)); }
  // The parameters of N neighbours from position i on, of any channels.
  template <int N>
  __device__ __forceinline__ void gather(int64_t i, Parameters (&p)[N]) const {
    const int64_t run = inner.divide(i);
    int64_t channel = channels.remainder(run), left = inner.divisor - (i - run * inner.divisor);
    p[0] = of(channel);
#pragma unroll
    for (int k = 1; k < N; ++k) {
      if (--left == 0) {
        left = inner.divisor;
        if (++channel == channels.divisor) channel = 0;
        p[k] = of(channel);
      } else {
        p[k] = p[k - 1];
      }
    }
  }

  const float* scale;
  const void* zero_point;
  ZeroPointKind kind;
  float quant_min, quant_max;
  Divider inner, channels;
};

// --- elementwise: run<N>(i, p) handles N neighbours from i on; p are their parameters, one for each or one
// for all (S is N or 1) ---

template <class T>
struct Quantize {
  static constexpr int width = kWidth<T>;
  const T* x;
  uint8_t* q;
  bool fits() const { return aligned<width>(x) && aligned<width>(q); }
  template <int N, int S>
  __device__ __forceinline__ void run(int64_t i, const Parameters (&p)[S]) const {
    float v[N];
    load<N>(x + i, v);
#pragma unroll
    for (int k = 0; k < N; ++k) v[k] = formula::quantize(v[k], p[k % S]);
    store<N>(q + i, v);
  }
};

template <class Q, class T>
struct Dequantize {
  static constexpr int width = kWidth<T>;
  const Q* q;
  T* y;
  bool fits() const { return aligned<width>(q) && aligned<width>(y); }
  template <int N, int S>
  __device__ __forceinline__ void run(int64_t i, const Parameters (&p)[S]) const {
    float v[N];
    load<N>(q + i, v);
#pragma unroll
    for (int k = 0; k < N; ++k) v[k] = formula::dequantize(v[k], p[k % S]);
    store<N>(y + i, v);
  }
};

template <class T>
struct FakeQuantize {
  static constexpr int width = kWidth<T>;
  const T* x;
  T* y;
  bool fits() const { return aligned<width>(x) && aligned<width>(y); }
  template <int N, int S>
  __device__ __forceinline__ void run(int64_t i, const Parameters (&p)[S]) const {
    float v[N];
    load<N>(x + i, v);
#pragma unroll
    for (int k = 0; k < N; ++k) v[k] = formula::fake_quantize(v[k], p[k % S]);
    store<N>(y + i, v);
  }
};

template <class T>
struct Backward {
  static constexpr int width = kWidth<T>;
  const T *grad, *x;
  T* grad_x;
  bool fits() const { return aligned<width>(grad) && aligned<width>(x) && aligned<width>(grad_x); }
  template <int N, int S>
  __device__ __forceinline__ void run(int64_t i, const Parameters (&p)[S]) const {
    float g[N], v[N];
    load<N>(grad + i, g);
    load<N>(x + i, v);
#pragma unroll
    for (int k = 0; k < N; ++k) g[k] = formula::backward(g[k], v[k], p[k % S]);
    store<N>(grad_x + i, g);
  }
};

// kGather: N neighbours may belong to several channels (runs that N does not divide). The blocks of a multiprocessor
// are what the registers allow: unasked, ptxas spills a few bytes on sm_100 and sm_120 to fit one block more.
template <int N, bool kGather, class Op>
__global__ void __launch_bounds__(kThreads, kGather ? 3 : 5) elementwise(Op op, Spread spread, int64_t numel) {
  const int64_t stride = int64_t(gridDim.x) * kThreads * N;
  for (int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * N; i < numel; i += stride) {
    if (N > 1 && i + N > numel) {
#pragma unroll 1  // fewer than N
      for (; i < numel; ++i) {
        const Parameters p[] = {spread.of(spread.channel_at(i))};
        op.template run<1>(i, p);
      }
      break;
    }
    if constexpr (kGather) {
      Parameters p[N];
      spread.gather(i, p);
      op.template run<N>(i, p);
    } else {
      const Parameters p[] = {spread.of(spread.channels.divisor == 1 ? 0 : spread.channel_at(i))};
      op.template run<N>(i, p);
    }
  }
}

// --- reductions: step<N>(states, p, i) adds N neighbours from i on to their states; states and parameters are
// one for each or one for all (S is N or 1) ---

template <class T>
struct LearnedBackward {
  static constexpr int width = kWidth<T>;
  using Params = Parameters;
  struct State {
    float scale_sum = 0, outside_sum = 0;
  };
  Spread spread;
  const T *grad, *x;
  T* grad_x;
  bool fits() const { return aligned<width>(grad) && aligned<width>(x) && aligned<width>(grad_x); }
  __device__ __forceinline__ Params params(int64_t channel) const { return spread.of(channel); }
  template <int N>
  __device__ __forceinline__ void gather(int64_t i, Params (&p)[N]) const {
    spread.gather(i, p);
  }
  template <int N, int S>
  __device__ __forceinline__ void step(State (&states)[S], const Params (&p)[S], int64_t i) const {
    float g[N], v[N];
    load<N>(grad + i, g);
    load<N>(x + i, v);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      State& s = states[k % S];
      g[k] = formula::learned_backward(g[k], v[k], p[k % S], s.scale_sum, s.outside_sum);
    }
    store<N>(grad_x + i, g);
  }
  static __device__ __forceinline__ Pair value(const State& s) { return {s.scale_sum, s.outside_sum}; }
  static __device__ __forceinline__ Pair join(Pair a, Pair b) { return {a.first + b.first, a.second + b.second}; }
};

// The lesser of two, or the greater, or the NaN that one of them is.
__device__ __forceinline__ float least(float a, float b) { return b < a || b != b ? b : a; }
__device__ __forceinline__ float greatest(float a, float b) { return b > a || b != b ? b : a; }
__device__ __forceinline__ Pair extremes(Pair a, Pair b) {
  return {least(a.first, b.first), greatest(a.second, b.second)};
}

template <class T>
struct MinMax {
  static constexpr int width = kWidth<T>;
  struct Params {};
  struct State {
    float low = __builtin_huge_valf(), high = -__builtin_huge_valf();
  };
  const T* x;
  bool fits() const { return aligned<width>(x); }
  __device__ __forceinline__ Params params(int64_t) const { return {}; }
  template <int N>
  __device__ __forceinline__ void gather(int64_t, Params (&)[N]) const {}
  template <int N, int S>
  __device__ __forceinline__ void step(State (&states)[S], const Params (&)[S], int64_t i) const {
    float v[N];
    load<N>(x + i, v);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      State& s = states[k % S];
      s.low = least(s.low, v[k]);
      s.high = greatest(s.high, v[k]);
    }
  }
  static __device__ __forceinline__ Pair value(const State& s) { return {s.low, s.high}; }
  static __device__ __forceinline__ Pair join(Pair a, Pair b) { return extremes(a, b); }
};

// fake_quantize and minmax at once.
template <class T>
struct Observed {
  static constexpr int width = kWidth<T>;
  using Params = Parameters;
  using State = typename MinMax<T>::State;
  Spread spread;
  const T* x;
  T* y;
  bool fits() const { return aligned<width>(x) && aligned<width>(y); }
  __device__ __forceinline__ Params params(int64_t channel) const { return spread.of(channel); }
  template <int N>
  __device__ __forceinline__ void gather(int64_t i, Params (&p)[N]) const {
    spread.gather(i, p);
  }
  template <int N, int S>
  __device__ __forceinline__ void step(State (&states)[S], const Params (&p)[S], int64_t i) const {
    float v[N];
    load<N>(x + i, v);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      State& s = states[k % S];
      s.low = least(s.low, v[k]);
      s.high = greatest(s.high, v[k]);
      v[k] = formula::fake_quantize(v[k], p[k % S]);
    }
    store<N>(y + i, v);
  }
  static __device__ __forceinline__ Pair value(const State& s) { return MinMax<T>::value(s); }
  static __device__ __forceinline__ Pair join(Pair a, Pair b) { return MinMax<T>::join(a, b); }
};

struct DoublePair {
  double first, second;
};

// `lanes` neighbouring threads, a power of two up to 32 or the whole block, bring their values together; the
// first of them has the result. The order is always the same. All threads of the block must come here.
template <class Value, class Join>
__device__ __forceinline__ Value across(Value v, int lanes, Join join) {
  for (int distance = (lanes < 32 ? lanes : 32) / 2; distance > 0; distance /= 2) {
    const Value other{__shfl_xor_sync(~0u, v.first, distance), __shfl_xor_sync(~0u, v.second, distance)};
    v = join(v, other);
  }
  if (lanes <= 32) return v;
  __shared__ Value of_warp[kThreads / 32];
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int w = 1; w < kThreads / 32; ++w) v = join(v, of_warp[w]);
  __syncthreads();  // before the next use of of_warp
  return v;
}

// Segments of runs, each reduced by `lanes` threads; a block works on several where runs are short.
struct Runs {
  int64_t inner, tasks;
  Divider parts, channels;
  int lanes;
};

template <int N, class Reducer>
__global__ void __launch_bounds__(kThreads) reduce_runs(Reducer reducer, Runs runs, Pair* partials) {
  const int lane = threadIdx.x % runs.lanes, together = kThreads / runs.lanes;
  const int64_t stride = int64_t(gridDim.x) * together;
  // base is the same in the whole block: all its threads reach across() equally often
  for (int64_t base = int64_t(blockIdx.x) * together; base < runs.tasks; base += stride) {
    const int64_t task = base + threadIdx.x / runs.lanes;
    typename Reducer::State s[1];
    if (task < runs.tasks) {
      const int64_t run = runs.parts.divide(task);
      const int64_t first = run * runs.inner + (task - run * runs.parts.divisor) * kSegment;
      const int64_t end = (run + 1) * runs.inner, last = first + kSegment < end ? first + kSegment : end;
      const int64_t whole = last - (last - first) % N;
      const typename Reducer::Params p[] = {reducer.params(runs.channels.remainder(run))};
      const int mine = lane * N, stride_in_run = runs.lanes * N;
      for (int64_t i = first + mine; i < whole; i += stride_in_run) reducer.template step<N>(s, p, i);
      if constexpr (N > 1) {
#pragma unroll 1  // fewer than N
        for (int64_t i = whole + lane; i < last; i += runs.lanes) reducer.template step<1>(s, p, i);
      }
    }
    const Pair total = across(Reducer::value(s[0]), runs.lanes, Reducer::join);
    if (lane == 0 && task < runs.tasks) partials[task] = total;
  }
}

// Short runs: the tensor as rows of `columns` elements. A block takes a block of rows and `across` times N
// columns; each thread walks down its own columns, then the threads of a column are added up in order.
struct Columns {
  int64_t rows, columns, rows_each, tasks;
  Divider groups;
  int across;
};

// The blocks of a multiprocessor: as at elementwise, against spills on sm_120.
template <int N, class Reducer>
__global__ void __launch_bounds__(kThreads, N > 4 ? 2 : 4)
    reduce_columns(Reducer reducer, Columns shape, Pair* partials) {
  __shared__ Pair values[kThreads * N];
  const int down = kThreads / shape.across, across = shape.across * N;
  const int my_row = threadIdx.x / shape.across, my_column = threadIdx.x % shape.across * N;
  for (int64_t task = blockIdx.x; task < shape.tasks; task += gridDim.x) {
    const int64_t part = shape.groups.divide(task);
    const int64_t left = (task - part * shape.groups.divisor) * across, column = left + my_column;
    typename Reducer::State s[N];
    if (column < shape.columns) {
      const int64_t first = part * shape.rows_each;
      const int64_t last = first + shape.rows_each < shape.rows ? first + shape.rows_each : shape.rows;
      typename Reducer::Params p[N];
      reducer.gather(column, p);
      for (int64_t row = first + my_row; row < last; row += down)
        reducer.template step<N>(s, p, row * shape.columns + column);
    }
#pragma unroll
    for (int k = 0; k < N; ++k) values[my_row * across + my_column + k] = Reducer::value(s[k]);
    __syncthreads();
    if (threadIdx.x < across && left + threadIdx.x < shape.columns) {
      Pair total = values[threadIdx.x];
      for (int row = 1; row < down; ++row) total = Reducer::join(total, values[row * across + threadIdx.x]);
      partials[part * shape.columns + left + threadIdx.x] = total;
    }
    __syncthreads();
  }
}

// The second, small kernel of a reduction: the partial results of each channel, in a fixed order.
struct Slots {
  int64_t channels, each;  // partial results of a channel
  Divider neighbours;      // how many of them lie side by side
  int lanes;
};

struct Sums {
  using Value = DoublePair;
  const float* scale;
  double grad_factor;
  float *grad_scale, *grad_zero;
  static __device__ __forceinline__ Value start() { return {0, 0}; }
  static __device__ __forceinline__ Value wide(Pair p) { return {p.first, p.second}; }
  static __device__ __forceinline__ Value join(Value a, Value b) { return {a.first + b.first, a.second + b.second}; }
  __device__ __forceinline__ void finish(int64_t channel, Value v) const {
    grad_scale[channel] = float(v.first * grad_factor);
    grad_zero[channel] = float(-v.second * scale[channel] * grad_factor);
  }
};

struct Extremes {
  using Value = Pair;
  float *low, *high;
  static __device__ __forceinline__ Value start() { return {__builtin_huge_valf(), -__builtin_huge_valf()}; }
  static __device__ __forceinline__ Value wide(Pair p) { return p; }
  static __device__ __forceinline__ Value join(Value a, Value b) { return extremes(a, b); }
  __device__ __forceinline__ void finish(int64_t channel, Value v) const {
    low[channel] = v.first;
    high[channel] = v.second;
  }
};

template <class Finish>
__global__ void __launch_bounds__(kThreads) combine(Finish finish, Slots slots, const Pair* partials) {
  const int lane = threadIdx.x % slots.lanes, together = kThreads / slots.lanes;
  const int64_t stride = int64_t(gridDim.x) * together, side = slots.neighbours.divisor;
  for (int64_t base = int64_t(blockIdx.x) * together; base < slots.channels; base += stride) {
    const int64_t channel = base + threadIdx.x / slots.lanes;
    auto total = Finish::start();
    if (channel < slots.channels)
      for (int64_t k = lane; k < slots.each; k += slots.lanes) {
        const int64_t row = slots.neighbours.divide(k);
        total = Finish::join(total, Finish::wide(partials[(row * slots.channels + channel) * side + k - row * side]));
      }
    total = across(total, slots.lanes, Finish::join);
    if (lane == 0 && channel < slots.channels) finish.finish(channel, total);
  }
}

}  // namespace
}  // namespace sparseq::affine
