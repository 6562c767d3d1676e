// 2:4 weights of float32, float16 or bfloat16 in their canonical form. What a row of x has in columns that are not
// kept is selected away, not multiplied by zero. No torch header.
#pragma once

#include <type_traits>

#include "kernels.cuh"

namespace sparseq::weight_only {
namespace {

// Where the four values of a byte of indices stand in the eight columns of their two groups.
struct Picks {
  uint32_t byte;
  __device__ __forceinline__ uint32_t position(int value) const { return byte >> (2 * value) & 3; }
  // As a selector of prmt: the bytes of both of a group's values among the four 16-bit floats of two words.
  __device__ __forceinline__ uint32_t selector(int group) const {
    return position(2 * group) * 0x22 + position(2 * group + 1) * 0x2200 + 0x1010;
  }
};

// Eight neighbours of a row of x: four() are those that a byte of indices picks.
template <class T>
struct Eight {
  uint4 words;  // T: Half or BFloat16
  __device__ __forceinline__ explicit Eight(const T* from) : words(__ldg(reinterpret_cast<const uint4*>(from))) {}
  __device__ __forceinline__ void pick(const Picks& picks, float (&to)[4]) const {
    const uint32_t pairs[2] = {__byte_perm(words.x, words.y, picks.selector(0)),
                               __byte_perm(words.z, words.w, picks.selector(1))};
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = widen(T{uint16_t(pairs[i / 2] >> (16 * (i % 2)))});
  }
};
template <>
struct Eight<float> {
  float x[8];
  __device__ __forceinline__ explicit Eight(const float* from) { load_8(from, x); }
  __device__ __forceinline__ void pick(const Picks& picks, float (&to)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t at = picks.position(i);
      const float* four = x + (i < 2 ? 0 : 4);
      const float low = at & 1 ? four[1] : four[0], high = at & 1 ? four[3] : four[2];
      to[i] = at & 2 ? high : low;
    }
  }
};

struct Sparse24 {
  const void* values;
  const uint8_t* indices;
  int64_t kept, bytes;  // values of an output, bytes of its indices
};

// Steps of 8 columns: 4 values of type V in one access, and a byte of indices.
template <class V>
struct WholeSparse : Sparse24 {
  static constexpr int kColumns = 8;
  struct Step {
    float values[4];
    uint32_t indices;
  };

  __device__ __forceinline__ Step step(int64_t output, int64_t i) const {
    Step s;
    load<4>(static_cast<const V*>(values) + output * kept + 4 * i, s.values);
    s.indices = __ldg(indices + output * bytes + i);
    return s;
  }

  template <class T, int kRows>
  __device__ __forceinline__ void add(const Step (&steps)[kOutputs], int64_t column, const T* const (&x)[kRows],
                                      Sums<kRows>& sums) const {
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
      const Eight<T> eight(x[m] + column);
#pragma unroll
      for (int r = 0; r < kOutputs; ++r) {
        float picked[4];
        eight.pick(Picks{steps[r].indices}, picked);
#pragma unroll
        for (int k = 0; k < 4; ++k) sums[r][m] = __fmaf_rn(steps[r].values[k], picked[k], sums[r][m]);
      }
    }
  }
};

// Any number of columns, alignment and pair of types: a byte of indices at a time. Columns past the last one count
// as 0, also for a value that is not finite.
struct AnySparse : Sparse24 {
  static constexpr int kColumns = 8;
  int64_t depth;
  int64_t type;  // an Element, of the values
  struct Step {
    float values[4];
    uint32_t indices;
  };

  __device__ __forceinline__ float value(int64_t at) const {
    float one[1];
    switch (Element(type)) {
      case Element::f16: load<1>(static_cast<const Half*>(values) + at, one); break;
      case Element::bf16: load<1>(static_cast<const BFloat16*>(values) + at, one); break;
      default: load<1>(static_cast<const float*>(values) + at, one);
    }
    return one[0];
  }

  __device__ __forceinline__ Step step(int64_t output, int64_t i) const {
    Step s;
    s.indices = __ldg(indices + output * bytes + i);
#pragma unroll
    for (int k = 0; k < 4; ++k) s.values[k] = 4 * i + k < kept ? value(output * kept + 4 * i + k) : 0.0f;
    return s;
  }

  template <class T, int kRows>
  __device__ __forceinline__ void add(const Step (&steps)[kOutputs], int64_t column, const T* const (&x)[kRows],
                                      Sums<kRows>& sums) const {
    Step left[kOutputs];
    memcpy(left, steps, sizeof left);
#pragma unroll 1  // of all sixteen at once, ptxas would hold more than there are registers: values move down instead
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int r = 0; r < kOutputs; ++r) {
        const int64_t at = column + int64_t(k / 2 * 4) + Picks{left[r].indices}.position(0);
#pragma unroll
        for (int m = 0; m < kRows; ++m) {
          float one[1] = {0.0f};
          if (at < depth) load<1>(x[m] + at, one);
          sums[r][m] = __fmaf_rn(left[r].values[0], one[0], sums[r][m]);
        }
        left[r].indices >>= 2;
#pragma unroll
        for (int i = 0; i < 3; ++i) left[r].values[i] = left[r].values[i + 1];
      }
    }
  }
};

}  // namespace
}  // namespace sparseq::weight_only
