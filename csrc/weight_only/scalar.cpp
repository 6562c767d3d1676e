#include <cmath>
#include <cstring>
#include <utility>

#include "../core/simd_scalar.h"
#include "../gemm/unroll.h"
#include "weight_only.h"

namespace sparseq::weight_only {
namespace {

constexpr int kOutputs[] = {0, 1, 1, 1, 1};

inline Vec fma(Vec a, Vec b, Vec c) {
  return Vec::each([&](int i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); });
}

inline void pin(Vec&) {}

inline float sum(Vec x) {
  for (int apart = 8; apart; apart /= 2)
    for (int i = 0; i < apart; ++i) x.lane[i] += x.lane[i + apart];
  return x.lane[0];
}

struct Base {
  int flip, shift;
  explicit Base(const Int4& p) : flip(p.is_signed ? 8 : 0), shift(p.shift) {}
};

template <class T>
inline Vec spread(const T* p, const Base& base) {
  return Vec::each([&](int i) { return float(p[i >> base.shift]); });
}

struct Codes {
  uint8_t bytes[64];
  Codes() = default;
  Codes(const uint8_t* p, const Base&) { std::memcpy(bytes, p, 64); }
};

template <int j>
inline Vec pick(const Codes& codes, const Base& base) {
  return Vec::each([&](int i) {
    const int nibble = (codes.bytes[4 * i + j / 2] >> (4 * (j % 2))) & 15;
    return float((nibble ^ base.flip) - base.flip);
  });
}

struct Picks {
  uint32_t word;
  Picks() = default;
  explicit Picks(uint32_t w) : word(w) {}
};

inline Vec select(Vec a, Vec b, const Picks& picks) {
  return Vec::each([&](int i) {
    const int column = 4 * (i / 2) + int(picks.word >> (2 * i) & 3);
    return column < 16 ? a.lane[column] : b.lane[column - 16];
  });
}

}  // namespace
}  // namespace sparseq::weight_only

#include "grid.h"

namespace sparseq::weight_only {
namespace {

using Whole = Repeated;

}  // namespace
}  // namespace sparseq::weight_only

#include "kernel.h"

namespace sparseq::weight_only {

const Kernels& kernels_scalar() {
  static constexpr Kernels table = make_kernels(Isa::scalar);
  return table;
}

}  // namespace sparseq::weight_only
