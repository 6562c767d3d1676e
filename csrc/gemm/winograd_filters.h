// One dimension of winograd.h's transforms over a trait of 16-bit lanes, for t outputs of t + 2 inputs (row i of a
// matrix at a time, for those that are wanted so). Points 0, 1, -1, infinity; for t = 4 also 2 and -2.
#pragma once
#include <cstdint>

#include "unroll.h"

namespace {

template <class W, int T>
struct Filter;

// Sums of lanes of so many bits, modulo 2^bits.
template <class W, int kBits>
struct Lanes {
  using Vec = typename W::Vec;
  static_assert(kBits == 16 || kBits == 32);
  static Vec plus(Vec a, Vec b) { return kBits == 16 ? W::add16(a, b) : W::add32(a, b); }
  static Vec minus(Vec a, Vec b) { return kBits == 16 ? W::sub16(a, b) : W::sub32(a, b); }
};

template <class W>
struct Filter<W, 2> {
  using Vec = typename W::Vec;
  static constexpr int kInputs = 4;
  static constexpr int kShared[2][2] = {{0, 3}, {1, 2}};  // of U that have terms in common
  static constexpr int kShift[2] = {1, 1};                // 2 Y and not Y: what outputs leaves to divide by
  static constexpr uint32_t kInverse = 1;

  // B^T d
  SPARSEQ_INLINE static void inputs(const Vec (&d)[4], Vec (&v)[4]) {
    using O = Lanes<W, 16>;
    v[0] = O::minus(d[0], d[2]);
    v[1] = O::plus(d[1], d[2]);
    v[2] = O::minus(d[2], d[1]);
    v[3] = O::minus(d[1], d[3]);
  }

  // Row I of 2 G g.
  template <int I>
  SPARSEQ_INLINE static Vec weights(const Vec (&g)[3]) {
    using O = Lanes<W, 16>;
    if constexpr (I == 0) return O::plus(g[0], g[0]);
    if constexpr (I == 1) return O::plus(O::plus(g[0], g[2]), g[1]);
    if constexpr (I == 2) return O::minus(O::plus(g[0], g[2]), g[1]);
    return O::plus(g[2], g[2]);
  }

  // A^T m
  SPARSEQ_INLINE static void outputs(const Vec (&m)[4], Vec (&y)[2]) {
    using O = Lanes<W, 32>;
    y[0] = O::plus(m[0], O::plus(m[1], m[2]));
    y[1] = O::minus(O::minus(m[1], m[2]), m[3]);
  }
};

template <class W>
struct Filter<W, 4> {
  using Vec = typename W::Vec;
  static constexpr int kInputs = 6;
  static constexpr int kShared[3][2] = {{0, 5}, {1, 2}, {3, 4}};
  static constexpr int kShift[4] = {3, 2, 1, 1};   // 3 * 2^kShift Y
  static constexpr uint32_t kInverse = 954437177;  // of 3 * 3, modulo 2^32

  SPARSEQ_INLINE static void inputs(const Vec (&d)[6], Vec (&v)[6]) {
    using O = Lanes<W, 16>;
    const auto even4 = O::minus(d[4], W::template shift_left16<2>(d[2])),
               odd4 = O::minus(d[3], W::template shift_left16<2>(d[1]));
    const auto even1 = O::minus(d[4], d[2]), odd1 = O::minus(d[3], d[1]), twice = O::plus(odd1, odd1);
    v[0] = O::plus(W::template shift_left16<2>(O::minus(d[0], d[2])), even1);
    v[1] = O::plus(even4, odd4);
    v[2] = O::minus(even4, odd4);
    v[3] = O::plus(even1, twice);
    v[4] = O::minus(even1, twice);
    v[5] = O::minus(O::minus(d[5], d[3]), W::template shift_left16<2>(odd1));
  }

  // Row I of G g, times 4, -6, -6, 24, 24 and 1.
  template <int I>
  SPARSEQ_INLINE static Vec weights(const Vec (&g)[3]) {
    using O = Lanes<W, 16>;
    if constexpr (I == 0) return g[0];
    if constexpr (I == 1) return O::plus(O::plus(g[0], g[2]), g[1]);
    if constexpr (I == 2) return O::minus(O::plus(g[0], g[2]), g[1]);
    if constexpr (I == 3) return O::plus(O::plus(g[0], W::template shift_left16<2>(g[2])), O::plus(g[1], g[1]));
    if constexpr (I == 4) return O::minus(O::plus(g[0], W::template shift_left16<2>(g[2])), O::plus(g[1], g[1]));
    return g[2];
  }

  // A^T m with those factors divided out, times 24, 12, 6 and 6.
  SPARSEQ_INLINE static void outputs(const Vec (&m)[6], Vec (&y)[4]) {
    using O = Lanes<W, 32>;
    const auto sum1 = O::plus(m[1], m[2]), sum2 = O::plus(m[3], m[4]);
    const auto less1 = O::minus(m[1], m[2]), less2 = O::minus(m[3], m[4]);
    const auto even = O::minus(O::plus(m[0], O::plus(m[0], m[0])), O::plus(sum1, sum1));
    const auto odd = O::plus(O::plus(m[5], O::plus(m[5], m[5])), less2);
    y[0] = O::plus(O::plus(even, even), sum2);
    y[1] = O::minus(less2, O::plus(less1, less1));
    y[2] = O::minus(sum2, sum1);
    y[3] = O::minus(O::plus(odd, odd), less1);
  }
};

}  // namespace
