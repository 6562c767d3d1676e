// INT4 weights with a scale, and perhaps a zero point, for each group of columns. A weight is what dequantize gives,
// bit for bit: (float(q) - float(zero)) * scale. No torch header.
#pragma once

#include "kernels.cuh"

namespace sparseq::weight_only {
namespace {

struct Int4 {
  const uint8_t* packed;
  const float* scale;
  const int32_t* zero;    // or null
  int64_t bytes, groups;  // of an output
  Divider group;          // columns of one: see below
  uint32_t flip, offset;  // signed: q + 8 = q ^ 8, and 8
};

// Steps of kBytes, 16 or 4: 32 or 8 columns, which begin at a multiple of that and lie in one group.
// Int4::group divides by the steps of a group.
template <int kBytes, bool kZero>
struct WholeInt4 : Int4 {
  static constexpr int kColumns = 2 * kBytes;
  struct Step {
    uint32_t words[kBytes / 4];
    float scale, zero;
  };

  __device__ __forceinline__ Step step(int64_t output, int64_t i) const {
    Step s;
    const auto bytes_of = __ldg(reinterpret_cast<const typename Word<kBytes>::Type*>(packed + output * bytes) + i);
    memcpy(s.words, &bytes_of, kBytes);
    const int64_t at = output * groups + group.divide(i);
    s.scale = __ldg(scale + at);
    s.zero = kZero && zero != nullptr ? float(__ldg(zero + at)) : 0.0f;
    return s;
  }

  // The eight nibbles of a word. A nibble at bit 4 j of the mantissa of 2^(23 - 4 j) is that number plus the nibble.
  __device__ __forceinline__ void decode(uint32_t word, float scale_of, float zero_of, float (&w)[8]) const {
    word ^= flip;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const int j = k % 4;
      const uint32_t half = k < 4 ? word : word >> 16, power = uint32_t(127 + 23 - 4 * j) << 23;
      const float base = __uint_as_float(power) + float(offset);
      float q = __uint_as_float((half & (15u << (4 * j))) | power) - base;
      if constexpr (kZero) q = q - zero_of;
      w[k] = q * scale_of;
    }
  }

  template <class T, int kRows>
  __device__ __forceinline__ void add(const Step (&steps)[kOutputs], int64_t column, const T* const (&x)[kRows],
                                      Sums<kRows>& sums) const {
#pragma unroll
    for (int part = 0; part < kBytes / 4; ++part) {
      float w[kOutputs][8];
#pragma unroll
      for (int r = 0; r < kOutputs; ++r) decode(steps[r].words[part], steps[r].scale, steps[r].zero, w[r]);
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        float eight[8];
        load_8(x[m] + column + int64_t(8 * part), eight);
#pragma unroll
        for (int r = 0; r < kOutputs; ++r)
#pragma unroll
          for (int k = 0; k < 8; ++k) sums[r][m] = __fmaf_rn(w[r][k], eight[k], sums[r][m]);
      }
    }
  }
};

// Any number of columns, groups and alignment: a byte at a time, many times slower. Int4::group divides by the
// columns of a group.
struct AnyInt4 : Int4 {
  static constexpr int kColumns = 2;
  int64_t depth;
  struct Step {
    float w[2];
  };

  __device__ __forceinline__ Step step(int64_t output, int64_t i) const {
    Step s;
    const uint32_t both = __ldg(packed + output * bytes + i) ^ (flip & 255);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int64_t column = 2 * i + k;
      s.w[k] = 0.0f;
      if (column >= depth) continue;  // the last high nibble belongs to nobody
      const int64_t at = output * groups + group.divide(column);
      const float q = float(int32_t(both >> (4 * k) & 15) - int32_t(offset));
      s.w[k] = (q - (zero != nullptr ? float(__ldg(zero + at)) : 0.0f)) * __ldg(scale + at);
    }
    return s;
  }

  template <class T, int kRows>
  __device__ __forceinline__ void add(const Step (&steps)[kOutputs], int64_t column, const T* const (&x)[kRows],
                                      Sums<kRows>& sums) const {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      if (column + k >= depth) continue;
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        float one[1];
        load<1>(x[m] + column + k, one);
#pragma unroll
        for (int r = 0; r < kOutputs; ++r) sums[r][m] = __fmaf_rn(steps[r].w[k], one[0], sums[r][m]);
      }
    }
  }
};

}  // namespace
}  // namespace sparseq::weight_only
