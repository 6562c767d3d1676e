// AVX2 micro-kernels: one loop per class of block (packed.h), each exact for the blocks it gets.
// Measured on one Zen 3 core at 3.2 GHz, in L1, dense-equivalent GMAC/s: dense quad 122, pair 98, wide 70;
// 2:4 quad 205, pair 181, wide 95.
#pragma once
#include <cstdint>

#include "../core/int8_avx2.h"
#include "micro.h"

namespace {

struct Avx2Micro : Avx2Bytes {
  using Float = Avx2Float;
  static constexpr int kDenseVectors = 2;
  static constexpr int kDenseRows = 6;  // 12 accumulators of the 16 registers
  static constexpr int kSparseRows = 8;
  static constexpr int kGroupVectors = 2;
  static constexpr bool kClassified = true;

  // w: the stored blocks of the first two classes; wide: the last class, expanded (expand_dense).
  template <int R>
  static void dense(const sparseq::Operands& o, int32_t* acc, int64_t stride, bool first) {
    constexpr int V = kDenseVectors;
    const Vec ones = _mm256_set1_epi16(1);
    Acc c[R][V];
    load_tile<R, V>(c, acc, stride, first);
    const sparseq::BlockRef* refs = o.refs;
    const uint8_t *w = o.weights, *wide = o.wide;
    int64_t ahead = 0;
    TapRows p(o);
    const auto each = [&](uint32_t blocks, const uint8_t*& data, int bytes, auto&& body) SPARSEQ_INLINE {
      for (uint32_t b = 0; b < blocks; ++b, ++refs, data += bytes, ahead += 64) {
        prefetch<64>(o.next, ahead);
        body(p.at(refs->tap), refs->offset());
      }
    };
    // 8 inputs. Weights are memory operands here and below: the 12 accumulators leave 4 registers.
    each(o.count[sparseq::kQuad], w, 64 * V, [&](const uint8_t* const* p, uint32_t offset) SPARSEQ_INLINE {
      unroll<R>([&](auto r) SPARSEQ_INLINE {
        const Vec x0 = broadcast4(p[r] + offset), x1 = broadcast4(p[r] + offset + 4);
        unroll<V>([&](auto v) SPARSEQ_INLINE {
          const Vec sum = _mm256_add_epi16(_mm256_maddubs_epi16(x0, load(w + 32 * v)),
                                           _mm256_maddubs_epi16(x1, load(w + 32 * (V + v))));
          accumulate(c[r][v], _mm256_madd_epi16(sum, ones));
        });
      });
    });
    // 4 inputs.
    each(o.count[sparseq::kPair], w, 32 * V, [&](const uint8_t* const* p, uint32_t offset) SPARSEQ_INLINE {
      Vec wv[V];
      unroll<V>([&](auto v) SPARSEQ_INLINE { wv[v] = load(w + 32 * v); });
      unroll<R>([&](auto r) SPARSEQ_INLINE {
        const Vec x = broadcast4(p[r] + offset);
        unroll<V>([&](auto v)
                      SPARSEQ_INLINE { accumulate(c[r][v], _mm256_madd_epi16(_mm256_maddubs_epi16(x, wv[v]), ones)); });
      });
    });
    // 4 inputs: inputs 0 and 2, and 1 and 3, as 16-bit integers.
    each(o.count[sparseq::kWide], wide, 64 * V, [&](const uint8_t* const* p, uint32_t offset) SPARSEQ_INLINE {
      Vec even[V];
      unroll<V>([&](auto v) SPARSEQ_INLINE { even[v] = load(wide + 64 * v); });
      unroll<R>([&](auto r) SPARSEQ_INLINE {
        const Vec x = broadcast4(p[r] + offset);
        const Vec x_even = _mm256_and_si256(x, _mm256_set1_epi16(255)), x_odd = _mm256_srli_epi16(x, 8);
        unroll<V>([&](auto v) SPARSEQ_INLINE {
          accumulate(c[r][v], _mm256_madd_epi16(x_even, even[v]));
          accumulate(c[r][v], _mm256_madd_epi16(x_odd, load(wide + 64 * v + 32)));
        });
      });
    });
    store_tile<R, V>(c, acc, stride);
  }

  static constexpr int64_t kWideStep = 64 * kDenseVectors;  // bytes per expanded step of 4 inputs

  static void expand_dense(const uint8_t* from, uint8_t* to, uint32_t vectors) {
    for (uint32_t i = 0; i < vectors; ++i, from += 32, to += 64) {
      const Vec w = load(from);
      store(to, _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8));
      store(to + 32, _mm256_srai_epi16(w, 8));
    }
  }

  // w: blocks as stored (96 bytes, kStored) or expanded (128 bytes: the positions split into two index vectors).
  static constexpr int64_t kExpandedBlock = 128;

  template <int R, bool kStored = false>
  static void sparse(const sparseq::Operands& o, int32_t* acc, int64_t stride, bool first) {
    const Vec ones = _mm256_set1_epi16(1);
    Acc c[R][1];
    load_tile<R, 1>(c, acc, stride, first);
    const sparseq::BlockRef* refs = o.refs;
    const uint8_t* w = o.weights;
    int64_t ahead = 0;
    TapRows p(o);
    const auto each = [&](uint32_t blocks, auto&& body) SPARSEQ_INLINE {
      for (uint32_t b = 0; b < blocks; ++b, ++refs, w += kStored ? 96 : 128, ahead += kStored ? 96 : 64) {
        prefetch<kStored ? 128 : 64>(o.next, ahead);
        const Vec position = load(w + 64);
        const Vec i0 = kStored ? low_nibbles(position) : position;
        const Vec i1 = kStored ? high_nibbles(position) : load(w + 96);
        body(p.at(refs->tap), refs->offset(), i0, i1);
      }
    };
    each(o.count[sparseq::kQuad], [&](const uint8_t* const* p, uint32_t offset, Vec i0, Vec i1) SPARSEQ_INLINE {
      const Vec w0 = load(w), w1 = load(w + 32);
      unroll<R>([&](auto r) SPARSEQ_INLINE {
        const Vec x = broadcast16(p[r] + offset);
        const Vec sum =
            _mm256_add_epi16(_mm256_maddubs_epi16(shuffle(x, i0), w0), _mm256_maddubs_epi16(shuffle(x, i1), w1));
        accumulate(c[r][0], _mm256_madd_epi16(sum, ones));
      });
    });
    each(o.count[sparseq::kPair], [&](const uint8_t* const* p, uint32_t offset, Vec i0, Vec i1) SPARSEQ_INLINE {
      const Vec w0 = load(w), w1 = load(w + 32);
      unroll<R>([&](auto r) SPARSEQ_INLINE {
        const Vec x = broadcast16(p[r] + offset);
        accumulate(c[r][0], _mm256_madd_epi16(_mm256_maddubs_epi16(shuffle(x, i0), w0), ones));
        accumulate(c[r][0], _mm256_madd_epi16(_mm256_maddubs_epi16(shuffle(x, i1), w1), ones));
      });
    });
    // The shuffle writes 0 wherever the index has its top bit set: activations arrive as 16-bit integers.
    const Vec zero_high = _mm256_set1_epi16(static_cast<short>(0xff00));
    each(o.count[sparseq::kWide], [&](const uint8_t* const* p, uint32_t offset, Vec i0, Vec i1) SPARSEQ_INLINE {
      unroll<2>([&](auto step) SPARSEQ_INLINE {
        const Vec wv = load(w + 32 * step), index = step == 0 ? i0 : i1;
        const Vec even = _mm256_srai_epi16(_mm256_slli_epi16(wv, 8), 8), odd = _mm256_srai_epi16(wv, 8);
        const Vec i_even = _mm256_or_si256(index, zero_high);
        const Vec i_odd = _mm256_or_si256(_mm256_srli_epi16(index, 8), zero_high);
        unroll<R>([&](auto r) SPARSEQ_INLINE {
          const Vec x = broadcast16(p[r] + offset);
          accumulate(c[r][0], _mm256_madd_epi16(shuffle(x, i_even), even));
          accumulate(c[r][0], _mm256_madd_epi16(shuffle(x, i_odd), odd));
        });
      });
    });
    store_tile<R, 1>(c, acc, stride);
  }

  static void expand_sparse(const uint8_t* from, uint8_t* to, uint32_t blocks) {
    for (uint32_t b = 0; b < blocks; ++b, from += 96, to += 128) {
      const Vec index = load(from + 64);
      store(to, load(from));
      store(to + 32, load(from + 32));
      store(to + 64, low_nibbles(index));
      store(to + 96, high_nibbles(index));
    }
  }

 private:
  SPARSEQ_INLINE static void accumulate(Acc& acc, Vec products) {
    acc = _mm256_add_epi32(acc, products);
    pin(acc);
  }
  template <int R, int V>
  SPARSEQ_INLINE static void load_tile(Acc (&c)[R][V], const int32_t* acc, int64_t stride, bool first) {
    unroll<R>([&](auto r) SPARSEQ_INLINE {
      unroll<V>([&](auto v) SPARSEQ_INLINE { c[r][v] = first ? zero() : load_acc(acc + r * stride + v * kLanes); });
    });
  }
  template <int R, int V>
  SPARSEQ_INLINE static void store_tile(const Acc (&c)[R][V], int32_t* acc, int64_t stride) {
    unroll<R>([&](auto r) SPARSEQ_INLINE {
      unroll<V>([&](auto v) SPARSEQ_INLINE { store_acc(acc + r * stride + v * kLanes, c[r][v]); });
    });
  }
};

}  // namespace
