// The SIMD trait on plain C++: sixteen float lanes, the same order of operations as on every ISA, so
// that reductions too are equal bit for bit.
#pragma once

#include <cmath>
#include <cstdint>

#include "half.h"

namespace sparseq {
namespace {

struct Mask {
  bool lane[16];
};

struct Vec {
  static constexpr int width = 16;
  float lane[16];

  template <class F>
  static Vec each(F f) {
    Vec r;
    for (int i = 0; i < 16; ++i) r.lane[i] = f(i);
    return r;
  }
  static Vec set1(float v) {
    return each([&](int) { return v; });
  }
  template <class T>
  static Vec load(const T* p) {
    return each([&](int i) { return to_float(p[i]); });
  }
  static Vec load(const int8_t* p) {
    return each([&](int i) { return float(p[i]); });
  }
  static Vec load(const uint8_t* p) {
    return each([&](int i) { return float(p[i]); });
  }
  static Vec load(const int32_t* p) {
    return each([&](int i) { return float(p[i]); });
  }
  template <class T>
  void store(T* p) const {
    for (int i = 0; i < 16; ++i) p[i] = from_float<T>(lane[i]);
  }
  // Lanes hold integers in [-128, 255]; the low byte serves int8 and uint8 alike.
  void store(uint8_t* p) const {
    for (int i = 0; i < 16; ++i) p[i] = uint8_t(int32_t(lane[i]));
  }
  // Lanes hold integers.
  void store(int32_t* p) const {
    for (int i = 0; i < 16; ++i) p[i] = int32_t(lane[i]);
  }
};

template <class F>
inline Mask each_mask(F f) {
  Mask r;
  for (int i = 0; i < 16; ++i) r.lane[i] = f(i);
  return r;
}

inline Vec operator+(Vec a, Vec b) {
  return Vec::each([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline Vec operator-(Vec a, Vec b) {
  return Vec::each([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline Vec operator*(Vec a, Vec b) {
  return Vec::each([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline Vec operator/(Vec a, Vec b) {
  return Vec::each([&](int i) { return a.lane[i] / b.lane[i]; });
}
// As minps and maxps: where one is NaN, the second.
inline Vec min(Vec a, Vec b) {
  return Vec::each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Vec max(Vec a, Vec b) {
  return Vec::each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Vec round(Vec a) {
  return Vec::each([&](int i) { return std::nearbyint(a.lane[i]); });
}
inline Vec floor(Vec a) {
  return Vec::each([&](int i) { return std::floor(a.lane[i]); });
}
inline Mask ordered(Vec a) {
  return each_mask([&](int i) { return a.lane[i] == a.lane[i]; });
}
inline Mask between(Vec a, Vec low, Vec high) {
  return each_mask([&](int i) { return a.lane[i] >= low.lane[i] && a.lane[i] <= high.lane[i]; });
}
inline Vec select(Mask m, Vec yes, Vec no) {
  return Vec::each([&](int i) { return m.lane[i] ? yes.lane[i] : no.lane[i]; });
}
inline Vec keep(Mask m, Vec a) {
  return Vec::each([&](int i) { return m.lane[i] ? a.lane[i] : 0.0f; });
}

}  // namespace
}  // namespace sparseq
