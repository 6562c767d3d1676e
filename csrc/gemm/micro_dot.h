// Micro-kernels over a trait with a four-way dot product (scalar, AVX-VNNI, AVX-512-VNNI): exact for every
// weight, so all blocks are in one class. acc[row][channel] += sum of a[row][k] * w[channel][k].
#pragma once
#include <cstdint>

#include "micro.h"

namespace {

template <class T>
struct DotMicro {
  using Float = typename T::FloatTrait;
  using Vec = typename T::Vec;
  using Acc = typename T::Acc;
  using Winograd = typename T::Winograd;
  using Columns = typename T::Columns;
  static constexpr int kLanes = T::kLanes, kBytes = 4 * kLanes;
  static constexpr int kDenseVectors = T::kDenseVectors, kDenseRows = T::kDenseRows;
  static constexpr int kBroadVectors = T::kBroadVectors, kBroadRows = T::kBroadRows;
  static constexpr int kSparsePanels = T::kSparsePanels, kSparseRows = T::kSparseRows, kStridedRows = T::kStridedRows;
  static constexpr int kGroupVectors = 2;
  static constexpr bool kClassified = false;
  static constexpr bool kStrided = kSparsePanels > 1, kStridedDense = false;  // dense tiles keep their rows' pointers
  // 2:4 blocks of one panel are read as stored; of two together their positions are split first.
  static constexpr int64_t kExpandedBlock = kSparsePanels > 1 ? 2 * kBytes : 0;
  static constexpr int kStoredRows = T::kStoredRows;  // of a single tile, for which that would take longer

  template <int R, class>
  static void dense(const sparseq::Operands& o, int32_t* acc, int64_t stride, bool first) {
    multiply<R, kDenseVectors>(o, acc, stride, first);
  }
  template <int R>
  static void broad(const sparseq::Operands& o, int32_t* acc, int64_t stride, bool first) {
    multiply<R, kBroadVectors>(o, acc, stride, first);
  }

  template <int R, class Rows, bool kStored = kExpandedBlock == 0>
  static void sparse(const sparseq::Operands& o, int32_t* acc, int64_t stride, bool first) {
    if constexpr (kStored)
      select_stored<R>(o, acc, stride, first);
    else
      select_expanded<R, Rows>(o, acc, stride, first);
  }

  // Of each block the positions for two steps of 8 inputs.
  static void expand_sparse(const uint8_t* from, uint8_t* to, uint32_t blocks, int64_t pitch) {
    walk_stored(from, blocks, [&](uint32_t, const uint8_t*, Vec index0, Vec index1) SPARSEQ_INLINE {
      T::store(to, index0), T::store(to + kBytes, index1);
      to += pitch;
    });
  }

  static constexpr int64_t kWideStep = 0;  // no block is ever wide
  static void expand_dense(const uint8_t*, uint8_t*, const uint32_t*) {}

 private:
  // Rows whose pointers stay in registers. Of 8 gcc 12 keeps some in vectors', from where each returns behind the
  // products and by a shuffle's pipe (Zen 4, 2:4 in L1: 333 GMAC/s, 350 without).
  static constexpr int kKept = 6;

  // Pointers loaded before are loaded anew.
  template <int R>
  SPARSEQ_INLINE static void forget(const uint8_t* const*& rows) {
    if (R > kKept) asm("" : "+r"(rows));
  }

  // Weights that will be wanted: to L2, since L1 holds the chunk in use, and has fewer misses under way at a time.
  SPARSEQ_INLINE static void look_ahead(const uint8_t*& next, int64_t lines) {
    if (next == nullptr) return;
    for (int64_t line = 0; line < lines; ++line) __builtin_prefetch(next + 64 * line, 0, 2);
    next += 64 * lines;
  }

  // body(x, renew): a chunk's blocks of kInputs inputs, a tap's behind each other; x(r): the row's inputs, to be called
  // after renew().
  template <int R, int kInputs, class Rows, class Body>
  SPARSEQ_INLINE static void walk(const sparseq::Operands& o, Body&& body) {
    const sparseq::BlockRef begin = o.count[0] > 0 ? *o.refs : sparseq::BlockRef{};
    const uint8_t* next = o.next;
    if constexpr (std::is_same_v<Rows, StridedRows>) {
      const StridedRows rows(o);
      const auto end = static_cast<int64_t>(begin.offset()) + o.count[0] * int64_t{kInputs};
      for (auto at = static_cast<int64_t>(begin.offset()); at < end; at += kInputs) {
        look_ahead(next, o.next_lines);
        const auto p = rows.at(0, static_cast<uint64_t>(at));
        body([&](auto r) SPARSEQ_INLINE { return p[r]; }, [] {});
      }
      return;
    }
    const uint8_t* const* rows = o.rows + begin.tap * o.tile;
    auto at = static_cast<int64_t>(begin.offset());
    for (int64_t left = o.count[0] * int64_t{kInputs}, stop; left > 0; at = 0, rows += o.tile) {
      stop = left < o.tap_inputs - at ? at + left : o.tap_inputs;
      left -= stop - at;
      const uint8_t* kept[R];
      unroll<R>([&](auto r) SPARSEQ_INLINE { kept[r] = rows[r]; });
      for (; at < stop; at += kInputs) {
        forget<R>(rows);  // or they would be copied to the stack first
        look_ahead(next, o.next_lines);
        body([&](auto r) SPARSEQ_INLINE { return (R > kKept ? rows : kept)[r] + at; },
             [&]() SPARSEQ_INLINE { forget<R>(rows); });
      }
    }
  }

  template <int R, int V>
  static void multiply(const sparseq::Operands& o, int32_t* acc, int64_t stride, bool first) {
    constexpr int kSteps = V > 2 ? 1 : 2;  // together, so that a row's pointer is loaded once, as registers allow
    Acc c[R][V];
    load<R, V>(c, acc, stride, first, o.start);
    const uint8_t* w = o.weights;
    walk<R, sparseq::kDenseBlock, TapRows>(o, [&](auto x, auto) SPARSEQ_INLINE {
      unroll<2 / kSteps>([&](auto first_step) SPARSEQ_INLINE {
        Vec wv[kSteps * V];
        unroll<kSteps * V>([&](auto v) SPARSEQ_INLINE { wv[v] = T::load(w + (first_step * V + v) * kBytes); });
        unroll<R>([&](auto r) SPARSEQ_INLINE {
          unroll<kSteps>([&](auto step) SPARSEQ_INLINE {
            const Vec four = T::broadcast4(x(r) + 4 * (first_step + step));
            unroll<V>([&](auto v) SPARSEQ_INLINE { T::dot(c[r][v], four, wv[step * V + v]); });
          });
        });
      });
      w += 2 * V * kBytes;
    });
    store<R, V>(c, acc, stride);
  }

  // Each step selects from 8 inputs, which vpbroadcastq loads: on Zen 5 a broadcast of 16 bytes to 512 bits
  // takes the shuffle's pipe (measured in L1: 520 against 760 GMAC/s), one of 8 bytes takes none.
  template <int R, class Rows>
  static void select_expanded(const sparseq::Operands& o, int32_t* acc, int64_t stride, bool first) {
    constexpr int V = kSparsePanels;
    Acc c[R][V];
    load<R, V>(c, acc, stride, first, o.start);
    const uint8_t *w = o.weights + kBytes, *positions = o.expanded;
    int64_t on = 2 * kBytes;  // to the next block's values: before every second one lie two blocks' positions
    walk<R, sparseq::kSparseBlock, Rows>(o, [&](auto x, auto renew) SPARSEQ_INLINE {
      unroll<2>([&](auto step) SPARSEQ_INLINE {
        renew();
        Vec wv[V], index[V];
        unroll<V>([&](auto v) SPARSEQ_INLINE {
          wv[v] = T::load(w + v * o.beside + step * kBytes), index[v] = T::load(positions + (2 * v + step) * kBytes);
        });
        unroll<R>([&](auto r) SPARSEQ_INLINE {
          const Vec eight = T::broadcast8(x(r) + 8 * step);
          unroll<V>([&](auto v) SPARSEQ_INLINE { T::dot(c[r][v], T::shuffle(eight, index[v]), wv[v]); });
        });
      });
      w += on, on = 5 * kBytes - on, positions += V * kExpandedBlock;
    });
    store<R, V>(c, acc, stride);
  }

  template <int R>
  static void select_stored(const sparseq::Operands& o, int32_t* acc, int64_t stride, bool first) {
    Acc c[R][1];
    load<R, 1>(c, acc, stride, first, o.start);
    TapRows rows(o);
    const uint8_t* next = o.next;
    walk_stored(o.weights, o.count[0], [&](uint32_t b, const uint8_t* w, Vec index0, Vec index1) SPARSEQ_INLINE {
      const auto p = rows.at(o.refs[b].tap, o.refs[b].offset());
      prefetch<2 * kBytes + 64>(next, w - o.weights);
      const Vec index[2] = {index0, index1}, wv[2] = {T::load(w), T::load(w + kBytes)};
      unroll<(R + 1) / 2>([&](auto pair) SPARSEQ_INLINE {  // two rows side by side: 3 % over one
        constexpr int kFirst = 2 * pair, kRows = R - kFirst < 2 ? 1 : 2;
        unroll<2>([&](auto step) SPARSEQ_INLINE {
          Vec x[kRows];
          unroll<kRows>(
              [&](auto r) SPARSEQ_INLINE { x[r] = T::shuffle(T::broadcast8(p[kFirst + r] + 8 * step), index[step]); });
          unroll<kRows>([&](auto r) SPARSEQ_INLINE { T::dot(c[kFirst + r][0], x[r], wv[step]); });
        });
      });
    });
    store<R, 1>(c, acc, stride);
  }

  // body(block, its values, the positions of either step). One vector holds the positions of two blocks, 2 bits a
  // value: memory is what few rows wait for.
  template <class Body>
  SPARSEQ_INLINE static void walk_stored(const uint8_t* w, uint32_t blocks, Body&& body) {
    uint32_t b = 0;
    for (; b + 2 <= blocks; b += 2, w += 5 * kBytes) {
      const Vec positions = T::load(w);
      body(b, w + kBytes, T::template index<0>(positions), T::template index<1>(positions));
      body(b + 1, w + 3 * kBytes, T::template index<2>(positions), T::template index<3>(positions));
    }
    if (b < blocks) {
      const Vec positions = T::load(w);
      body(b, w + kBytes, T::template index<0>(positions), T::template index<1>(positions));
    }
  }

  // Addresses one from the other: together gcc 12 would hold them in vectors' registers.
  template <int R, int V>
  SPARSEQ_INLINE static void load(Acc (&c)[R][V], const int32_t* acc, int64_t stride, bool first,
                                  const int32_t* start) {
    if (first) {
      Acc each[V];
      unroll<V>([&](auto v)
                    SPARSEQ_INLINE { each[v] = start == nullptr ? T::zero() : T::load_acc(start + v * kLanes); });
      unroll<R>([&](auto r) SPARSEQ_INLINE { unroll<V>([&](auto v) SPARSEQ_INLINE { c[r][v] = each[v]; }); });
      return;
    }
    unroll<R>([&](auto r) SPARSEQ_INLINE {
      unroll<V>([&](auto v) SPARSEQ_INLINE { c[r][v] = T::load_acc(acc + v * kLanes); });
      acc += stride;
    });
  }
  template <int R, int V>
  SPARSEQ_INLINE static void store(const Acc (&c)[R][V], int32_t* acc, int64_t stride) {
    unroll<R>([&](auto r) SPARSEQ_INLINE {
      unroll<V>([&](auto v) SPARSEQ_INLINE { T::store_acc(acc + v * kLanes, c[r][v]); });
      acc += stride;
    });
  }
};

}  // namespace
