// AMX's products: sums of tiles over all inputs, and what is done beside them.
#pragma once
#include <cstdint>
#include <utility>

#include "../core/amx_tiles.h"
#include "amx_outputs.h"
#include "dense24_avx512.h"

namespace {

template <class FloatTrait>
struct AmxProducts : AmxOutputs<FloatTrait> {
  using Base = AmxOutputs<FloatTrait>;
  using Base::kGroup, Base::kPanels, Base::kRows, Base::kWidth;
  template <int64_t kRowsAtOnce>
  using Pending = typename Base::template Pending<kRowsAtOnce>;
  static constexpr int64_t kRing = 8;  // steps whose 2:4 weights are dense at a time
  static constexpr unsigned kAll = 0xff, kFew = 0b01010011, kTall = 0b01011111;  // tile registers

  // A work item.
  struct Operands {
    const uint8_t* weights[kPanels];  // [inputs / 4][16][4]
    const int32_t* starts[kPanels];   // of the sums, [16]; null: 0
    int64_t weight_step, steps, panels;
    const int64_t* offsets;         // of rows, to their inputs for each step
    const uint8_t *first, *second;  // rows of the tiles
    int64_t stride;
  };
  // What each step does for the weights that will be wanted next: fetches some of their lines,
  struct Lines {
    const uint8_t* next;
    int64_t each;
    SPARSEQ_INLINE void some() {
      for (int64_t line = 0; line < each; ++line, next += 64) __builtin_prefetch(next, 0, 2);
    }
  };
  // or makes some 2:4 ones dense.
  struct Expand {
    Expansion24& next;
    uint8_t*& to;
    int64_t each;
    SPARSEQ_INLINE void some() {
      for (int64_t part = 0; part < each && next.any(); ++part) to = next.some(to);
    }
  };
  // A panel's, 2:4, step after step, made dense in a ring just before.
  struct Made {
    Expansion24 rest;
    uint8_t *ring, *to;
    int64_t step, made = 0, read = 0;
    Made(Expansion24 all, uint8_t* ring_, int64_t step_) : rest(all), ring(ring_), to(ring_), step(step_) {}
    SPARSEQ_INLINE const uint8_t* next() {
      const int64_t size = kRing * step;
      while (made < read + 3 * step && rest.any()) {  // two steps ahead of their products
        uint8_t* end = rest.some(to);
        made += end - to;
        to = end == ring + size ? ring : end;
      }
      return ring + std::exchange(read, read + step) % size;
    }
  };

  template <class Outputs>
  using Queue = Pending<Outputs::kRows>[kPanels];  // of either panel

  template <int T, bool kTwo>
  SPARSEQ_INLINE static void start(const int32_t* starts) {
    if (starts == nullptr) {
      AmxTiles::zero<T>();
      if (kTwo) AmxTiles::zero<T + 1>();
    } else {
      AmxTiles::start<T>(starts);
      if (kTwo) AmxTiles::start<T + 1>(starts);
    }
  }
  template <int T, bool kTwo>
  SPARSEQ_INLINE static void store(int32_t* acc, int64_t apart) {
    AmxTiles::store<T>(acc, 4 * kGroup);
    if (kTwo) AmxTiles::store<T + 1>(acc + apart, 4 * kGroup);
  }

  // The sums of a panel's channels and of a tile's rows or two tiles'; beside them the other panel's that are pending
  // become outputs.
  template <bool kTwo, class Outputs, class Ahead>
  static void multiply(const Operands& o, int64_t panel, int32_t* acc, int64_t apart, Pending<Outputs::kRows>& pending,
                       const Outputs& there, Ahead& ahead) {
    using T = AmxTiles;
    const Outputs outputs = there;  // in registers
    start<0, kTwo>(o.starts[panel]);
    const uint8_t* weights = o.weights[panel];
    for (int64_t s = 0; s < o.steps; ++s, weights += o.weight_step) {
      const int64_t at = o.offsets[s];
      T::load<6>(weights, 64);
      T::load<4>(o.first + at, o.stride);
      T::dot<0, 4, 6>();
      if (kTwo) T::load<4>(o.second + at, o.stride);
      if (kTwo) T::dot<1, 4, 6>();
      ahead.some();
      pending.some(outputs, there);
    }
    store<0, kTwo>(acc, apart);
    pending.all(there);
  }

  // Those of both panels.
  template <bool kTwo, class Outputs, class Ahead>
  static void multiply_both(const Operands& o, int32_t* acc, int64_t apart, Queue<Outputs>& pending,
                            const Outputs (&there)[kPanels], Ahead& ahead) {
    using T = AmxTiles;
    const Outputs outputs0 = there[0], outputs1 = there[1];
    start<0, kTwo>(o.starts[0]), start<2, kTwo>(o.starts[1]);
    const uint8_t *weights0 = o.weights[0], *weights1 = o.weights[1];
    for (int64_t s = 0; s < o.steps; ++s, weights0 += o.weight_step, weights1 += o.weight_step) {
      const int64_t at = o.offsets[s];
      T::load<6>(weights0, 64), T::load<7>(weights1, 64);
      T::load<4>(o.first + at, o.stride);
      if (kTwo) T::load<5>(o.second + at, o.stride);
      T::dot<0, 4, 6>();
      if (kTwo) T::dot<1, 5, 6>();
      pending[0].some(outputs0, there[0]);
      T::dot<2, 4, 7>();
      if (kTwo) T::dot<3, 5, 7>();
      ahead.some();
      pending[1].some(outputs1, there[1]);
    }
    store<0, kTwo>(acc, apart), store<2, kTwo>(acc + kWidth, apart);
    pending[0].all(there[0]), pending[1].all(there[1]);
  }

  // Those of a panel and up to 64 rows, whose tiles begin `at` these.
  template <class Outputs>
  static void multiply_tall(const Operands& o, int64_t panel, const int64_t (&at)[4], int32_t* acc,
                            Pending<Outputs::kRows>& pending, const Outputs& there, Made weights) {
    using T = AmxTiles;
    const Outputs outputs = there;  // in registers
    start<0, true>(o.starts[panel]), start<2, true>(o.starts[panel]);
    for (int64_t s = 0; s < o.steps; ++s) {
      T::load<6>(weights.next(), 64);
      const uint8_t* row = o.first + o.offsets[s];
      T::load<4>(row + at[0] * o.stride, o.stride), T::dot<0, 4, 6>();
      T::load<4>(row + at[1] * o.stride, o.stride), T::dot<1, 4, 6>();
      pending.some(outputs, there);
      T::load<4>(row + at[2] * o.stride, o.stride), T::dot<2, 4, 6>();
      T::load<4>(row + at[3] * o.stride, o.stride), T::dot<3, 4, 6>();
    }
    T::store<0>(acc + at[0] * kGroup, 4 * kGroup), T::store<1>(acc + at[1] * kGroup, 4 * kGroup);
    T::store<2>(acc + at[2] * kGroup, 4 * kGroup), T::store<3>(acc + at[3] * kGroup, 4 * kGroup);
    pending.all(there);
  }
};

}  // namespace
