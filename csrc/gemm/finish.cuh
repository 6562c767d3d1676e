// From a sum to what is stored, as core/epilogue.h defines it, in its order of float32 operations: compile with
// --fmad=false. N neighbouring outputs of one row at a time. No torch header.
#pragma once

#include "../core/device.cuh"

// after the trait that it is written over
#include "../affine/formula.h"
#include "launch.h"
#include "mma.cuh"

namespace sparseq::gemm {
namespace {

template <class T>
__device__ __forceinline__ T value_or(const T* p, T missing) {
  return p != nullptr ? __ldg(p) : missing;
}

// f(a value of the element type), for the types that a tensor can have.
template <class F>
__device__ __forceinline__ void by_element(Element type, F f) {
  switch (type) {
    case Element::f32: return f(float{});
    case Element::f16: return f(Half{});
    case Element::bf16: return f(BFloat16{});
    case Element::u8: return f(uint8_t{});
    case Element::s8: return f(int8_t{});
    case Element::none: return;
  }
}

// The first `count` of N; all of them in the widest accesses where `vector` says that they are aligned.
template <int N, class T>
__device__ __forceinline__ void load_some(const T* from, float (&to)[N], bool vector, int count) {
  constexpr int kEach = N * int(sizeof(T)) > kVectorBytes ? kVectorBytes / int(sizeof(T)) : N;
  if (N > 1 && vector && count == N) {
    if constexpr (kEach == N) {
      load<N>(from, to);
    } else {
#pragma unroll
      for (int k = 0; k < N; k += kEach) {
        float part[kEach];
        load<kEach>(from + k, part);
#pragma unroll
        for (int i = 0; i < kEach; ++i) to[k + i] = part[i];
      }
    }
    return;
  }
#pragma unroll
  for (int k = 0; k < N; ++k) {
    float one[1] = {0.0f};
    if (k < count) load<1>(from + k, one);
    to[k] = one[0];
  }
}

template <int N, class T>
__device__ __forceinline__ void store_some(T* to, const float (&from)[N], bool vector, int count) {
  constexpr int kEach = N * int(sizeof(T)) > kVectorBytes ? kVectorBytes / int(sizeof(T)) : N;
  if (N > 1 && vector && count == N) {
#pragma unroll
    for (int k = 0; k < N; k += kEach) {
      float part[kEach];
#pragma unroll
      for (int i = 0; i < kEach; ++i) part[i] = from[k + i];
      store<kEach>(to + k, part);
    }
    return;
  }
#pragma unroll
  for (int k = 0; k < N; ++k)
    if (k < count) {
      const float one[1] = {from[k]};
      store<1>(to + k, one);
    }
}

__device__ __forceinline__ float activate(Activation kind, float y) {
  switch (kind) {    // the operand order lets a NaN through, as torch does
    default: break;  // none: Given refuses those that are not here
    case Activation::relu: return max(0.0f, y);
    case Activation::relu6: return min(6.0f, max(0.0f, y));
    case Activation::hardswish: return y * min(6.0f, max(0.0f, y + 3.0f)) / 6.0f;
  }
  return y;
}

// What N neighbouring outputs have in common over the rows.
template <int N>
struct Outputs {
  int64_t first;
  int count;  // of the N
  float multiplier[N], bias[N];
  int32_t shift[N];  // zero * weight_sum; with row_zero the weight sums alone

  __device__ __forceinline__ Outputs(const cuda::Finish& f, int64_t first_, int count_) : first(first_), count(count_) {
    const float x_scale = value_or(f.x_scale, 1.0f);
    const int32_t zero = f.row_zero != nullptr ? 1 : value_or(f.x_zero, 0);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const bool here = k < count;
      multiplier[k] = here && f.scale != nullptr ? __ldg(f.scale + first + k) : 0.0f;
      if (f.x_scale != nullptr) multiplier[k] = multiplier[k] * x_scale;
      bias[k] = here && f.bias != nullptr ? __ldg(f.bias + first + k) : 0.0f;
      shift[k] = here && f.weight_sum != nullptr ? zero * __ldg(f.weight_sum + first + k) : 0;
    }
  }

  // The same by way of shared memory, arrays of `all`: what a kernel cannot hold in registers all the time.
  __device__ __forceinline__ void keep(uint32_t shared, int all, int at) const {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      store_4(shared + uint32_t(4 * (at + k)), __float_as_uint(multiplier[k]));
      store_4(shared + uint32_t(4 * (all + at + k)), __float_as_uint(bias[k]));
      store_4(shared + uint32_t(4 * (2 * all + at + k)), uint32_t(shift[k]));
    }
  }
  __device__ __forceinline__ Outputs(uint32_t shared, int all, int at, int64_t first_, int count_)
      : first(first_), count(count_) {
#pragma unroll
    for (int k = 0; k < N; k += 4) {
      uint32_t v[4];
      load_16(v, shared + uint32_t(4 * (at + k)));
#pragma unroll
      for (int i = 0; i < 4; ++i) multiplier[k + i] = __uint_as_float(v[i]);
      load_16(v, shared + uint32_t(4 * (all + at + k)));
#pragma unroll
      for (int i = 0; i < 4; ++i) bias[k + i] = __uint_as_float(v[i]);
      load_16(v, shared + uint32_t(4 * (2 * all + at + k)));
#pragma unroll
      for (int i = 0; i < 4; ++i) shift[k + i] = int32_t(v[i]);
    }
  }

  __device__ __forceinline__ float value(const cuda::Finish& f, int32_t sum, int k, int32_t row_zero,
                                         float row_scale) const {
    float y = float(sum - shift[k] * row_zero) * multiplier[k];
    if (f.row_scale != nullptr) y = y * row_scale;
    return y;
  }
  __device__ __forceinline__ float value(const cuda::Finish&, float sum, int, int32_t, float) const { return sum; }

  template <class Sum>
  __device__ __forceinline__ void row(const cuda::Finish& f, const Sum (&sums)[N], int64_t m) const {
    const int32_t row_zero = f.row_zero != nullptr ? __ldg(f.row_zero + m) : 1;
    const float row_scale = f.row_scale != nullptr ? __ldg(f.row_scale + m) : 1.0f;
    float y[N];
#pragma unroll
    for (int k = 0; k < N; ++k) {
      y[k] = value(f, sums[k], k, row_zero, row_scale);
      if (f.bias != nullptr) y[k] = y[k] + bias[k];
    }
    by_element(f.residual_type, [&]<class T>(T) {
      float r[N];
      load_some<N>(static_cast<const T*>(f.residual) + m * f.residual_stride + first, r, f.vector, count);
      const float scale = value_or(f.residual_scale, 1.0f);
      const int32_t zero = value_or(f.residual_zero, 0);
#pragma unroll
      for (int k = 0; k < N; ++k) y[k] = y[k] + (sizeof(T) == 1 ? (r[k] - float(zero)) * scale : r[k]);
    });
#pragma unroll
    for (int k = 0; k < N; ++k) y[k] = activate(f.activation, y[k]);
    by_element(f.output_type, [&]<class T>(T) {
      if constexpr (sizeof(T) == 1) {
        const float zero = min(f.output_high, max(f.output_low, float(value_or(f.y_zero, 0))));
        const formula::Params<float> grid{__ldg(f.y_scale), zero, f.output_low - zero, f.output_high - zero};
#pragma unroll
        for (int k = 0; k < N; ++k) y[k] = formula::quantize(y[k], grid);
        store_some<N>(static_cast<uint8_t*>(f.output) + m * f.output_stride + first, y, f.vector, count);
      } else {
        store_some<N>(static_cast<T*>(f.output) + m * f.output_stride + first, y, f.vector, count);
      }
    });
  }
};

}  // namespace
}  // namespace sparseq::gemm
