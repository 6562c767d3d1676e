// The 2:4 mask, and the canonical form to and from dense weights, on a GPU: format.h says what they are. No torch
// header. A thread takes a group of four inputs (mask), or two, which share a byte of indices.
#pragma once

#include <type_traits>

#include "../core/device.cuh"
#include "launch.h"

namespace sparseq {
namespace {

constexpr int kGroupThreads = 256;

// Elements are bits: int8, uint16 or uint32.
template <class T>
__device__ __forceinline__ T magnitude(T bits) {
  return bits & T(T(~T(0)) >> 1);
}
__device__ __forceinline__ bool is_zero(int8_t value) { return value == 0; }
template <class T>
__device__ __forceinline__ bool is_zero(T bits) {
  return magnitude(bits) == 0;
}

// Groups of four in a weight [outputs][columns][taps], counted as the threads of a warp should touch memory:
// neighbouring groups of a row with one tap, neighbouring taps of a group with several.
struct GroupShape {
  explicit GroupShape(const Shape24& s)
      : outputs(s.outputs), columns(s.columns), groups(groups_24(s.columns)), per(groups), taps(s.taps) {}
  int64_t outputs, columns, groups;
  Divider per, taps;
};

// Element 0 of a group, the distance of its members, and how many they are.
struct Group {
  int64_t first, step;
  int members;
  __device__ __forceinline__ Group(const GroupShape& s, int64_t output, int64_t tap, int64_t group)
      : first((output * s.columns + 4 * group) * s.taps.divisor + tap), step(s.taps.divisor) {
    const int64_t left = s.columns - 4 * group;
    members = left < 4 ? left < 0 ? 0 : int(left) : 4;
  }
};

template <class T>
__global__ void __launch_bounds__(kGroupThreads) mask_groups(const T* weight, T infinity, uint8_t* mask, GroupShape s) {
  using Key = std::make_signed_t<T>;
  const int64_t i = int64_t(blockIdx.x) * kGroupThreads + threadIdx.x;
  const int64_t line = s.taps.divide(i), tap = i - line * s.taps.divisor;
  const int64_t output = s.per.divide(line), group = line - output * s.groups;
  if (output >= s.outputs) return;
  const Group at(s, output, tap, group);
  Key key[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    key[j] = -2;  // not there: below NaN
    if (j < at.members) {
      const T size = magnitude(weight[at.first + j * at.step]);
      key[j] = size > infinity ? Key(-1) : Key(size);
    }
  }
  // The two greatest are those that win two of their three comparisons; the earlier wins among equals.
  const int ab = key[0] >= key[1], ac = key[0] >= key[2], ad = key[0] >= key[3];
  const int bc = key[1] >= key[2], bd = key[1] >= key[3], cd = key[2] >= key[3];
  const bool keep[4] = {ab + ac + ad >= 2, bc + bd >= 1 + ab, cd >= ac + bc, ad + bd + cd <= 1};
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (j < at.members) mask[at.first + j * at.step] = keep[j];
}

__device__ __forceinline__ void report(uint64_t* fault, int64_t row, int64_t group, int64_t groups, Format24 error) {
  const uint64_t place = uint64_t(row) * uint64_t(groups + 1) + uint64_t(group);
  atomicMin(reinterpret_cast<unsigned long long*>(fault), place * 4 + uint64_t(error));
}

// Rows of (output, tap), bytes of indices: thread i has byte i % bytes of row i / bytes.
struct ByteOf {
  int64_t row, output, tap, byte;
  __device__ __forceinline__ ByteOf(const GroupShape& s, const Divider& bytes, int64_t i)
      : row(bytes.divide(i)), output(s.taps.divide(row)), tap(row - output * s.taps.divisor) {
    byte = i - row * bytes.divisor;
  }
};

template <class T>
__global__ void __launch_bounds__(kGroupThreads)
    pack_groups(const T* weight, GroupShape s, Divider bytes, T* values, uint8_t* indices, uint64_t* fault) {
  const int64_t i = int64_t(blockIdx.x) * kGroupThreads + threadIdx.x;
  const ByteOf b(s, bytes, i);
  if (b.output >= s.outputs) return;
  uint32_t packed = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t group = 2 * b.byte + half;
    if (group >= s.groups) break;
    const Group at(s, b.output, b.tap, group);
    T w[4];
    int first = 2, last = -1, count = 0;
#pragma unroll
    for (int j = 3; j >= 0; --j) {
      w[j] = j < at.members ? weight[at.first + j * at.step] : T(0);
      if (!is_zero(w[j])) {
        ++count;
        if (last < 0) last = j;
        if (j < 2) first = j;
      }
    }
    if (count > 2) report(fault, b.row, group, s.groups, Format24::not_2_4);
    const int second = last > first ? last : first < 2 ? 2 : 3;
    T v[2] = {0, 0};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (is_zero(w[j])) continue;  // -0 becomes +0
      if (j == first) v[0] = w[j];
      if (j == second) v[1] = w[j];
    }
    T* to = values + (b.row * s.groups + group) * 2;
    to[0] = v[0];
    to[1] = v[1];
    packed |= uint32_t(first | second << 2) << (4 * half);
  }
  indices[i] = uint8_t(packed);
}

template <class T>
__global__ void __launch_bounds__(kGroupThreads)
    unpack_groups(const T* values, const uint8_t* indices, GroupShape s, Divider bytes, T* weight, uint64_t* fault) {
  const int64_t i = int64_t(blockIdx.x) * kGroupThreads + threadIdx.x;
  const ByteOf b(s, bytes, i);
  if (b.output >= s.outputs) return;
  const uint32_t packed = indices[i];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t group = 2 * b.byte + half;
    const int first = packed >> (4 * half) & 3, second = packed >> (4 * half + 2) & 3;
    if (group >= s.groups) {
      if (packed >> 4 != 0) report(fault, b.row, s.groups, s.groups, Format24::bad_padding);
      break;
    }
    const Group at(s, b.output, b.tap, group);
    const T* v = values + (b.row * s.groups + group) * 2;
    const T kept[2] = {v[0], v[1]};
    if (first >= second)
      report(fault, b.row, group, s.groups, Format24::bad_index);
    else if ((first >= at.members && !is_zero(kept[0])) || (second >= at.members && !is_zero(kept[1])))
      report(fault, b.row, group, s.groups, Format24::bad_padding);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (j < at.members) weight[at.first + j * at.step] = j == second ? kept[1] : j == first ? kept[0] : T(0);
  }
}

}  // namespace
}  // namespace sparseq
