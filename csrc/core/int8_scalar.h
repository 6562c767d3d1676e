// The scalar trait: eight lanes in an array. It defines what the vector traits must equal bit for bit.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "half.h"

namespace {

struct ScalarFloat {
  static constexpr int kLanes = 8;
  struct Float {
    float v[kLanes];
  };
  struct Int {
    int32_t v[kLanes];
  };

  template <class F>
  static Float make(F f) {
    Float r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = f(i);
    return r;
  }
  template <class F>
  static Int make_int(F f) {
    Int r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = f(i);
    return r;
  }

  static Float set(float x) {
    return make([=](int) { return x; });
  }
  static Int set_int(int32_t x) {
    return make_int([=](int) { return x; });
  }
  static Float load(const float* p) {
    return make([=](int i) { return p[i]; });
  }
  static Int load_int(const int32_t* p) {
    return make_int([=](int i) { return p[i]; });
  }
  static Int load_u8(const uint8_t* p) {
    return make_int([=](int i) { return int32_t{p[i]}; });
  }
  static Int load_s8(const uint8_t* p) {
    return make_int([=](int i) { return int32_t{static_cast<int8_t>(p[i])}; });
  }
  static Float load(const sparseq::BFloat16* p) {
    return make([=](int i) { return sparseq::to_float(p[i]); });
  }
  static Float load(const sparseq::Half* p) {
    return make([=](int i) { return sparseq::to_float(p[i]); });
  }
  static void store(float* p, Float x) {
    for (int i = 0; i < kLanes; ++i) p[i] = x.v[i];
  }
  static void store_int(int32_t* p, Int x) {
    for (int i = 0; i < kLanes; ++i) p[i] = x.v[i];
  }
  static void store_low_bytes(uint8_t* p, Int x) {
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<uint8_t>(x.v[i]);
  }
  static void store(sparseq::BFloat16* p, Float x) {
    for (int i = 0; i < kLanes; ++i) {
      const bool nan = x.v[i] != x.v[i];
      p[i] = nan ? sparseq::BFloat16{0x7fc0} : sparseq::from_float<sparseq::BFloat16>(x.v[i]);
    }
  }
  static void store(sparseq::Half* p, Float x) {
    for (int i = 0; i < kLanes; ++i) p[i] = sparseq::from_float<sparseq::Half>(x.v[i]);
  }
  // Wrapping subtraction and product: the exact result fits int32 even where an intermediate does not.
  struct Offset {  // float of bytes less a number
    Int zero;
    explicit Offset(int32_t zero_) : zero(set_int(zero_)) {}
    Float operator()(const uint8_t* p) const { return to_float(sub(load_u8(p), zero)); }
  };
  static Int sub(Int a, Int b) {
    return make_int([&](int i) { return static_cast<int32_t>(uint32_t(a.v[i]) - uint32_t(b.v[i])); });
  }
  static Int add(Int a, Int b) {
    return make_int([&](int i) { return static_cast<int32_t>(uint32_t(a.v[i]) + uint32_t(b.v[i])); });
  }
  static Int mul(Int a, Int b) {
    return make_int([&](int i) { return static_cast<int32_t>(uint32_t(a.v[i]) * uint32_t(b.v[i])); });
  }
  static Int multiply_pairs(Int a, Int b, Int w) {
    return make_int([&](int i) {
      return a.v[i] * static_cast<int16_t>(w.v[i] & 0xffff) + b.v[i] * static_cast<int16_t>(uint32_t(w.v[i]) >> 16);
    });
  }
  // The same for two vectors of channels, added to their sums.
  static void add_pairs(Int (&sum)[2], const uint8_t* a, const uint8_t* b, const int32_t* w) {
    for (int i = 0; i < 2; ++i, a += kLanes, b += kLanes, w += kLanes)
      sum[i] = add(sum[i], multiply_pairs(load_u8(a), load_u8(b), load_int(w)));
  }
  static Float to_float(Int a) {
    return make([&](int i) { return static_cast<float>(a.v[i]); });
  }
  static Float add(Float a, Float b) {
    return make([&](int i) { return a.v[i] + b.v[i]; });
  }
  static Float mul(Float a, Float b) {
    return make([&](int i) { return a.v[i] * b.v[i]; });
  }
  static Float div(Float a, Float b) {
    return make([&](int i) { return a.v[i] / b.v[i]; });
  }
  static Float fma(Float a, Float b, Float c) {
    return make([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
  }
  static Float quotient(Float a, Float b, Float, Float) { return div(a, b); }
  // As vmaxps and vminps: the second operand where either is NaN.
  static Float max(Float a, Float b) {
    return make([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static Float min(Float a, Float b) {
    return make([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static Float nan_to_zero(Float a) {
    return make([&](int i) { return a.v[i] == a.v[i] ? a.v[i] : 0.0f; });
  }
  static Int round(Float a) {
    return make_int([&](int i) { return static_cast<int32_t>(std::nearbyintf(a.v[i])); });
  }
  static Float sub(Float a, Float b) {
    return make([&](int i) { return a.v[i] - b.v[i]; });
  }
  static Int bits(Float a) {
    return make_int([&](int i) { return static_cast<int32_t>(sparseq::as_bits(a.v[i])); });
  }
  static Float from_bits(Int a) {
    return make([&](int i) { return sparseq::as_float(static_cast<uint32_t>(a.v[i])); });
  }
  static Int bit_and(Int a, Int b) {
    return make_int([&](int i) { return a.v[i] & b.v[i]; });
  }
  static Int bit_or(Int a, Int b) {
    return make_int([&](int i) { return a.v[i] | b.v[i]; });
  }
  template <int kBits>
  static Int shift_left(Int a) {
    return make_int([&](int i) { return static_cast<int32_t>(uint32_t(a.v[i]) << kBits); });
  }
  // 256 bytes; look_up: what each of kBytes bytes is there.
  struct Table {
    static constexpr int kBytes = 1;
    const uint8_t* bytes;
    explicit Table(const uint8_t* bytes_) : bytes(bytes_) {}
    void look_up(const uint8_t* from, uint8_t* to) const { *to = bytes[*from]; }
  };
};

struct ScalarDot {
  using Columns = void;
  using Winograd = void;
  using FloatTrait = ScalarFloat;
  static constexpr int kLanes = 8;
  static constexpr int kDenseRows = 4, kDenseVectors = 2;
  static constexpr int kBroadRows = 0, kBroadVectors = 0;
  static constexpr int kSparseRows = 4, kSparsePanels = 1, kStoredRows = 0, kStridedRows = 4;
  struct Vec {
    uint8_t b[4 * kLanes];
  };
  struct Acc {
    int32_t v[kLanes];
  };

  static Acc zero() { return Acc{}; }
  static Acc load_acc(const int32_t* p) {
    Acc a;
    std::memcpy(a.v, p, sizeof a.v);
    return a;
  }
  static void store_acc(int32_t* p, const Acc& a) { std::memcpy(p, a.v, sizeof a.v); }
  static Vec load(const uint8_t* p) {
    Vec r;
    std::memcpy(r.b, p, sizeof r.b);
    return r;
  }
  static void store(uint8_t* p, const Vec& x) { std::memcpy(p, x.b, sizeof x.b); }
  // Bits 2 * kStep, + 1 of each byte, + 4 in the upper half of each four.
  template <int kStep>
  static Vec index(const Vec& positions) {
    Vec r;
    for (int i = 0; i < 4 * kLanes; ++i) r.b[i] = (positions.b[i] >> (2 * kStep) & 3) | (i & 2) << 1;
    return r;
  }
  static Vec broadcast4(const uint8_t* p) {
    Vec r;
    for (int i = 0; i < kLanes; ++i) std::memcpy(r.b + 4 * i, p, 4);
    return r;
  }
  static Vec broadcast8(const uint8_t* p) {
    Vec r;
    for (int i = 0; i < kLanes / 2; ++i) std::memcpy(r.b + 8 * i, p, 8);
    return r;
  }
  static Vec shuffle(const Vec& x, const Vec& index) {
    Vec r;
    for (int i = 0; i < 4 * kLanes; ++i) r.b[i] = x.b[(i & ~15) + (index.b[i] & 15)];
    return r;
  }
  static void dot(Acc& acc, const Vec& a, const Vec& w) {
    for (int i = 0; i < kLanes; ++i) {
      int32_t sum = 0;
      for (int j = 0; j < 4; ++j) sum += int32_t{a.b[4 * i + j]} * static_cast<int8_t>(w.b[4 * i + j]);
      acc.v[i] = static_cast<int32_t>(uint32_t(acc.v[i]) + uint32_t(sum));
    }
  }
};

}  // namespace
