// Micro-kernels over a trait with a four-way dot product (scalar, AVX-VNNI, AVX-512-VNNI): exact for every
// weight, so all blocks are in one class. acc[row][channel] += sum of a[row][k] * w[channel][k].
#pragma once
#include <cstdint>

#include "packed.h"
#include "unroll.h"

namespace {

template <class T>
struct DotMicro {
  using Float = typename T::FloatTrait;
  using Vec = typename T::Vec;
  using Acc = typename T::Acc;
  static constexpr int kLanes = T::kLanes;
  static constexpr int kDenseVectors = T::kDenseVectors;
  static constexpr int kDenseRows = T::kDenseRows;
  static constexpr int kSparseRows = T::kSparseRows;
  static constexpr int kGroupVectors = 2;
  static constexpr bool kClassified = false;

  template <int R>
  static void dense(const sparseq::Operands& o, int32_t* acc, int64_t stride, bool first) {
    constexpr int V = kDenseVectors, kBytes = 4 * kLanes;
    Acc c[R][V];
    load<R, V>(c, acc, stride, first);
    const uint8_t *w = o.weights, *next = o.next;
    for (uint32_t b = 0; b < o.count[0]; ++b, w += 2 * V * kBytes) {
      const uint8_t* const* p = o.rows + o.refs[b].tap * kDenseRows;
      const uint32_t offset = o.refs[b].offset();
      __builtin_prefetch(next + b * 2 * V * kBytes, 0, 3);
      unroll<2>([&](auto step) SPARSEQ_INLINE {
        Vec wv[V];
        unroll<V>([&](auto v) SPARSEQ_INLINE { wv[v] = T::load(w + (step * V + v) * kBytes); });
        unroll<R>([&](auto r) SPARSEQ_INLINE {
          const Vec x = T::broadcast4(p[r] + offset + 4 * step);
          unroll<V>([&](auto v) SPARSEQ_INLINE { T::dot(c[r][v], x, wv[v]); });
        });
      });
    }
    store<R, V>(c, acc, stride);
  }

  // w: blocks as stored (kStored) or expanded by expand_sparse().
  template <int R, bool kStored>
  static void sparse(const sparseq::Operands& o, int32_t* acc, int64_t stride, bool first) {
    constexpr int kBytes = 4 * kLanes;
    Acc c[R][1];
    load<R, 1>(c, acc, stride, first);
    const uint8_t *w = o.weights, *next = o.next;
    for (uint32_t b = 0; b < o.count[0]; ++b, w += (kStored ? 3 : 4) * kBytes) {
      const uint8_t* const* p = o.rows + o.refs[b].tap * kSparseRows;
      const uint32_t offset = o.refs[b].offset();
      __builtin_prefetch(next + b * 3 * kBytes, 0, 3);
      const Vec w0 = T::load(w), w1 = T::load(w + kBytes);
      const Vec position = T::load(w + 2 * kBytes);
      const Vec i0 = kStored ? T::low_nibbles(position) : position;
      const Vec i1 = kStored ? T::high_nibbles(position) : T::load(w + 3 * kBytes);
      unroll<R>([&](auto r) SPARSEQ_INLINE {
        const Vec x = T::broadcast16(p[r] + offset);
        T::dot(c[r][0], T::shuffle(x, i0), w0);
        T::dot(c[r][0], T::shuffle(x, i1), w1);
      });
    }
    store<R, 1>(c, acc, stride);
  }

  static constexpr int64_t kWideStep = 0;  // no block is ever wide
  static void expand_dense(const uint8_t*, uint8_t*, uint32_t) {}

  // Splits the position nibbles of `blocks` stored 2:4 blocks into two index vectors each.
  static void expand_sparse(const uint8_t* from, uint8_t* to, uint32_t blocks) {
    constexpr int kBytes = 4 * kLanes;
    for (uint32_t b = 0; b < blocks; ++b, from += 3 * kBytes, to += 4 * kBytes) {
      const Vec index = T::load(from + 2 * kBytes);
      T::store(to, T::load(from));
      T::store(to + kBytes, T::load(from + kBytes));
      T::store(to + 2 * kBytes, T::low_nibbles(index));
      T::store(to + 3 * kBytes, T::high_nibbles(index));
    }
  }

 private:
  template <int R, int V>
  SPARSEQ_INLINE static void load(Acc (&c)[R][V], const int32_t* acc, int64_t stride, bool first) {
    unroll<R>([&](auto r) SPARSEQ_INLINE {
      unroll<V>([&](auto v)
                    SPARSEQ_INLINE { c[r][v] = first ? T::zero() : T::load_acc(acc + r * stride + v * kLanes); });
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
