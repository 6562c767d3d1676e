// What device code of every family starts from, with no torch header: the trait that makes one float a V of
// affine/formula.h, the 16-bit floats, 16-byte accesses, and division by a number known at launch.
// Include before formula.h: its calls on float find the trait where the template is written.
#pragma once

#include <cstdint>
#include <cstring>

#include "half.h"

namespace sparseq {
namespace {

// --- V = float, each as the SIMD traits define it for a lane ---

__device__ __forceinline__ float round(float a) { return rintf(a); }
__device__ __forceinline__ float floor(float a) { return floorf(a); }
// As minps and maxps, not fminf and fmaxf: where one is NaN, the second.
__device__ __forceinline__ float min(float a, float b) { return a < b ? a : b; }
__device__ __forceinline__ float max(float a, float b) { return a > b ? a : b; }
__device__ __forceinline__ bool ordered(float a) { return a == a; }
__device__ __forceinline__ bool between(float a, float low, float high) { return a >= low && a <= high; }
__device__ __forceinline__ float select(bool m, float yes, float no) { return m ? yes : no; }
__device__ __forceinline__ float keep(bool m, float a) { return m ? a : 0.0f; }

// --- elements; a NaN stays one, but the hardware may change its payload ---

__device__ __forceinline__ float widen(float a) { return a; }
__device__ __forceinline__ float widen(int8_t a) { return float(a); }
__device__ __forceinline__ float widen(uint8_t a) { return float(a); }
__device__ __forceinline__ float widen(BFloat16 a) { return __uint_as_float(uint32_t(a.bits) << 16); }
__device__ __forceinline__ float widen(Half a) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(a.bits));
  return wide;
}

__device__ __forceinline__ void narrow(float a, float& to) { to = a; }
// a is an integer in [-128, 255]; the low byte serves int8 and uint8 alike.
__device__ __forceinline__ void narrow(float a, uint8_t& to) { to = uint8_t(int32_t(a)); }
__device__ __forceinline__ void narrow(float a, Half& to) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(a)); }
__device__ __forceinline__ void narrow(float a, BFloat16& to) {
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(a));
}

// --- N neighbours in one access of up to 16 bytes ---

constexpr int kVectorBytes = 16;

template <int kBytes>
struct Word;
template <>
struct Word<1> {
  using Type = uint8_t;
};
template <>
struct Word<2> {
  using Type = uint16_t;
};
template <>
struct Word<4> {
  using Type = uint32_t;
};
template <>
struct Word<8> {
  using Type = uint2;
};
template <>
struct Word<16> {
  using Type = uint4;
};

template <int N, class T>
using WordOf = typename Word<N* int(sizeof(T))>::Type;

// From memory that nobody writes during the kernel.
template <int N, class T>
__device__ __forceinline__ void load(const T* from, float (&to)[N]) {
  const auto word = __ldg(reinterpret_cast<const WordOf<N, T>*>(from));
  T elements[N];
  memcpy(elements, &word, sizeof word);
#pragma unroll
  for (int k = 0; k < N; ++k) to[k] = widen(elements[k]);
}

template <int N, class T>
__device__ __forceinline__ void store(T* to, const float (&from)[N]) {
  T elements[N];
#pragma unroll
  for (int k = 0; k < N; ++k) narrow(from[k], elements[k]);
  WordOf<N, T> word;
  memcpy(&word, elements, sizeof word);
  *reinterpret_cast<WordOf<N, T>*>(to) = word;
}

template <int N, class T>
inline bool aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % (N * sizeof(T)) == 0;
}

// A kernel's parameter, read whole where the kernel begins. Otherwise the compiler moves reads behind branches, and
// there through the parameter's address, which the interpreter that tests use does not follow.
template <class T>
__device__ __forceinline__ T at_once(const T& parameter) {
  static_assert(sizeof(T) % 8 == 0);
  struct Words {
    uint64_t word[sizeof(T) / 8];
  };
  auto words = __builtin_bit_cast(Words, parameter);
#pragma unroll
  for (uint64_t& word : words.word) asm volatile("" : "+l"(word));
  return __builtin_bit_cast(T, words);
}

// n / divisor for 0 <= n < 2^63 by one high product (Granlund & Montgomery 1994, figure 4.1): a 64-bit
// division takes about a hundred instructions on a GPU.
struct Divider {
  // 0, a size of an empty tensor, is taken as 1: nothing will be divided
  explicit Divider(int64_t by) : divisor(by > 0 ? by : 1) {
    const auto d = uint64_t(divisor);
    while ((uint64_t(1) << shift) < d) ++shift;
    const auto excess = (uint64_t(1) << shift) - d;
    multiplier = uint64_t((static_cast<unsigned __int128>(excess) << 64) / d) + 1;
  }
  __device__ __forceinline__ int64_t divide(int64_t n) const {
    return int64_t((__umul64hi(uint64_t(n), multiplier) + uint64_t(n)) >> shift);
  }
  __device__ __forceinline__ int64_t remainder(int64_t n) const { return n - divide(n) * divisor; }

  int64_t divisor;
  uint64_t multiplier = 0;
  int shift = 0;
};

}  // namespace
}  // namespace sparseq
