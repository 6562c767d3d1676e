// Micro-kernels over a trait with a four-way dot product (scalar, AVX-VNNI, AVX-512-VNNI): exact for every
// weight, so all blocks are in one class. acc[row][channel] += sum of a[row][k] * w[channel][k].
#pragma once
#include <cstdint>

#include "micro.h"

namespace {

using sparseq::kDenseBlock;

template <class T>
struct DotMicro {
  using Float = typename T::FloatTrait;
  using Vec = typename T::Vec;
  using Acc = typename T::Acc;
  static constexpr int kLanes = T::kLanes;
  static constexpr int kDenseVectors = T::kDenseVectors;
  static constexpr int kDenseRows = T::kDenseRows;
  static constexpr int kBroadVectors = T::kBroadVectors;
  static constexpr int kBroadRows = T::kBroadRows;
  static constexpr int kSparseRows = T::kSparseRows;
  static constexpr int kGroupVectors = 2;
  static constexpr bool kClassified = false;
  static constexpr bool kStrided = false;
  using Winograd = typename T::Winograd;
  using Columns = typename T::Columns;

  template <int R, class>
  static void dense(const sparseq::Operands& o, int32_t* acc, int64_t stride, bool first) {
    multiply<R, kDenseVectors>(o, acc, stride, first);
  }
  template <int R>
  static void broad(const sparseq::Operands& o, int32_t* acc, int64_t stride, bool first) {
    multiply<R, kBroadVectors>(o, acc, stride, first);
  }

  // Each step selects from 8 inputs, which vpbroadcastq loads: on Zen 5 a broadcast of 16 bytes to 512 bits
  // takes the shuffle's pipe (measured in L1: 520 against 760 GMAC/s), one of 8 bytes takes none. One vector
  // holds the positions of two blocks, 2 bits a value: memory is what few rows wait for.
  template <int R, class Rows>
  static void sparse(const sparseq::Operands& o, int32_t* acc, int64_t stride, bool first) {
    constexpr int kBytes = 4 * kLanes;
    Acc c[R][1];
    load<R, 1>(c, acc, stride, first, o.start);
    Rows rows(o);
    const auto block = [&](uint32_t b, const uint8_t* w, Vec index0, Vec index1) SPARSEQ_INLINE {
      const auto p = rows.at(o.refs[b].tap, o.refs[b].offset());
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
    };
    const uint8_t* w = o.weights;
    uint32_t b = 0;
    for (; b + 2 <= o.count[0]; b += 2, w += 5 * kBytes) {
      prefetch<5 * kBytes>(o.next, w - o.weights);
      const Vec positions = T::load(w);
      block(b, w + kBytes, T::template index<0>(positions), T::template index<1>(positions));
      block(b + 1, w + 3 * kBytes, T::template index<2>(positions), T::template index<3>(positions));
    }
    if (b < o.count[0]) {
      const Vec positions = T::load(w);
      block(b, w + kBytes, T::template index<0>(positions), T::template index<1>(positions));
    }
    store<R, 1>(c, acc, stride);
  }

  static constexpr int64_t kWideStep = 0;  // no block is ever wide
  static void expand_dense(const uint8_t*, uint8_t*, const uint32_t*) {}
  static constexpr int64_t kExpandedBlock = 0;  // 2:4 blocks are read as stored

 private:
  template <int R, int V>
  static void multiply(const sparseq::Operands& o, int32_t* acc, int64_t stride, bool first) {
    constexpr int kBytes = 4 * kLanes, kBlock = 2 * V * kBytes;
    constexpr int kKept = 8;
    constexpr int kSteps = V > 2 ? 1 : 2;  // together, so that a row's pointer is loaded once, as registers allow
    Acc c[R][V];
    load<R, V>(c, acc, stride, first, o.start);
    const uint8_t *w = o.weights, *next = o.next;
    const sparseq::BlockRef begin = o.count[0] > 0 ? *o.refs : sparseq::BlockRef{};
    const uint8_t* const* rows = o.rows + begin.tap * o.tile;
    auto at = static_cast<int64_t>(begin.offset());
    for (int64_t left = o.count[0] * int64_t{kDenseBlock}, stop; left > 0; at = 0, rows += o.tile) {
      stop = left < o.tap_inputs - at ? at + left : o.tap_inputs;  // of one tap: up to kKept pointers stay in registers
      left -= stop - at;
      const uint8_t* kept[R];
      unroll<R>([&](auto r) SPARSEQ_INLINE { kept[r] = rows[r]; });
      for (; at < stop; at += kDenseBlock, w += kBlock) {
        if (R > kKept) asm("" : "+r"(rows));  // or they would be copied to the stack first
        if (next != nullptr) {
          for (int64_t line = 0; line < o.next_lines; ++line) __builtin_prefetch(next + 64 * line);
          next += 64 * o.next_lines;
        }
        unroll<2 / kSteps>([&](auto first_step) SPARSEQ_INLINE {
          Vec wv[kSteps * V];
          unroll<kSteps * V>([&](auto v) SPARSEQ_INLINE { wv[v] = T::load(w + (first_step * V + v) * kBytes); });
          unroll<R>([&](auto r) SPARSEQ_INLINE {
            unroll<kSteps>([&](auto step) SPARSEQ_INLINE {
              const Vec x = T::broadcast4((R > kKept ? rows : kept)[r] + at + 4 * (first_step + step));
              unroll<V>([&](auto v) SPARSEQ_INLINE { T::dot(c[r][v], x, wv[step * V + v]); });
            });
          });
        });
      }
    }
    store<R, V>(c, acc, stride);
  }

  template <int R, int V>
  SPARSEQ_INLINE static void load(Acc (&c)[R][V], const int32_t* acc, int64_t stride, bool first,
                                  const int32_t* start) {
    if (first && start == nullptr) {
      unroll<R>([&](auto r) SPARSEQ_INLINE { unroll<V>([&](auto v) SPARSEQ_INLINE { c[r][v] = T::zero(); }); });
      return;
    }
    const int32_t* from = first ? start : acc;
    const int64_t step = first ? 0 : stride;
    unroll<R>([&](auto r) SPARSEQ_INLINE {
      unroll<V>([&](auto v) SPARSEQ_INLINE { c[r][v] = T::load_acc(from + r * step + v * kLanes); });
    });
  }
  template <int R, int V>
  SPARSEQ_INLINE static void store(const Acc (&c)[R][V], int32_t* acc, int64_t stride) {
    unroll<R>([&](auto r) SPARSEQ_INLINE {
      unroll<V>([&](auto v) SPARSEQ_INLINE { T::store_acc(acc + r * stride + v * kLanes, c[r][v]); });
    });
  }
};

}  // namespace
