// AVX2 micro-kernels: one loop per class of block (packed.h), each exact for the blocks it gets.
// Measured on one Zen 3 core, in whole 1x1 convolutions (196 rows, 1024 inputs, 256 channels), dense-equivalent GMAC/s:
// dense quad 112, pair 93, both vectors wide 75; 2:4 quad 168, of normal weights (most pairs) 151. Two multiplications
// a cycle bound pairs (103 at 3.2 GHz); in wide blocks eight operations a row share four pipes.
#pragma once
#include <cstdint>

#include "depthwise_columns.h"
#include "micro.h"
#include "winograd_avx2.h"
#include "winograd_kernel.h"

namespace {

struct Avx2Micro : Avx2Bytes {
  using Float = Avx2Float;
  static constexpr int kDenseVectors = 2;
  static constexpr int kDenseRows = 6;  // 12 accumulators of the 16 registers
  static constexpr int kSparseRows = 8;
  static constexpr int kBroadVectors = 0, kBroadRows = 0;
  static constexpr int kGroupVectors = 2;
  static constexpr bool kClassified = true;
  static constexpr bool kStrided = true, kStridedDense = true;
  static constexpr int kStridedRows = kSparseRows;
  using Winograd = WinogradKernel<Avx2Words>;
  using Columns = ColumnsAvx2;

  // w: the stored blocks of the first two classes; wide: the last class, expanded (expand_dense).
  template <int R, class Rows>
  static void dense(const sparseq::Operands& o, int32_t* acc, int64_t stride, bool first) {
    constexpr int V = kDenseVectors;
    const Vec ones = _mm256_set1_epi16(1);
    Acc c[R][V];
    load_tile<R, V>(c, acc, stride, first ? o.start : nullptr);
    const sparseq::BlockRef* refs = o.refs;
    const uint8_t *w = o.weights, *wide = o.expanded;
    int64_t ahead = 0;
    Rows rows(o);
    const auto each = [&](uint32_t blocks, const uint8_t*& data, int bytes, auto&& body) SPARSEQ_INLINE {
      for (uint32_t b = 0; b < blocks; ++b, ++refs, data += bytes, ahead += 64) {
        prefetch<64>(o.next, ahead);
        body(rows.at(refs->tap, refs->offset()));
      }
    };
    // 8 inputs. Weights are memory operands here and below: the 12 accumulators leave 4 registers.
    each(o.count[sparseq::kQuad], w, 64 * V, [&](auto p) SPARSEQ_INLINE {
      unroll<R>([&](auto r) SPARSEQ_INLINE {
        const Vec x0 = broadcast4(p[r]), x1 = broadcast4(p[r] + 4);
        unroll<V>([&](auto v) SPARSEQ_INLINE {
          const Vec sum = _mm256_add_epi16(multiply_memory(x0, w + 32 * v), multiply_memory(x1, w + 32 * (V + v)));
          accumulate(c[r][v], _mm256_madd_epi16(sum, ones));
        });
      });
    });
    // 4 inputs.
    each(o.count[sparseq::kPair], w, 32 * V, [&](auto p) SPARSEQ_INLINE {
      const Vec kept = load(w);
      unroll<R>([&](auto r) SPARSEQ_INLINE {
        const Vec x = broadcast4(p[r]);
        unroll<V>([&](auto v) SPARSEQ_INLINE {
          const Vec products = v == 0 ? _mm256_maddubs_epi16(x, kept) : multiply_memory(x, w + 32 * v);
          accumulate(c[r][v], _mm256_madd_epi16(products, ones));
        });
      });
    });
    // 4 inputs: of a wide vector |w| and what flips the inputs' bits, of another one w. One |w| has the last register:
    // with more loads than four a row (two a cycle) those would take longer than the multiplications.
    const auto some_wide = [&](uint32_t blocks, auto first, auto second) SPARSEQ_INLINE {
      each(blocks, wide, 64 * V, [&](auto p) SPARSEQ_INLINE {
        const Vec kept = load(wide + (first ? 0 : 64));
        unroll<R>([&](auto r) SPARSEQ_INLINE {
          const Vec x = broadcast4(p[r]);
          unroll<V>([&](auto v) SPARSEQ_INLINE {
            const Vec w = v == (first ? 0 : 1) ? kept : reload(wide + 64 * v);
            const Vec products = (v == 0 ? first : second) ? _mm256_maddubs_epi16(w, xor_memory(x, wide + 64 * v + 32))
                                                           : _mm256_maddubs_epi16(x, w);
            accumulate(c[r][v], _mm256_madd_epi16(products, ones));
          });
        });
      });
    };
    some_wide(o.count[sparseq::kWide], std::true_type{}, std::true_type{});
    some_wide(o.count[sparseq::kWideFirst], std::true_type{}, std::false_type{});
    some_wide(o.count[sparseq::kWideSecond], std::false_type{}, std::true_type{});
    store_tile<R, V>(c, acc, stride);
  }

  static constexpr int64_t kWideStep = 64 * kDenseVectors;  // bytes per expanded step of 4 inputs

  // The blocks of the classes from kWide on.
  static void expand_dense(const uint8_t* from, uint8_t* to, const uint32_t* count) {
    static_assert(kDenseVectors == 2);
    const auto expand = [&](uint32_t blocks, bool first, bool second) {
      for (uint32_t b = 0; b < blocks; ++b, from += 64, to += 128) {
        const Vec w[] = {load(from), load(from + 32)};
        store(to, first ? _mm256_abs_epi8(w[0]) : w[0]);
        store(to + 32, flips(w[0]));
        store(to + 64, second ? _mm256_abs_epi8(w[1]) : w[1]);
        store(to + 96, flips(w[1]));
      }
    };
    expand(count[sparseq::kWide], true, true);
    expand(count[sparseq::kWideFirst], true, false);
    expand(count[sparseq::kWideSecond], false, true);
  }

  // w: blocks as stored (96 bytes, kStored) or expanded (128 bytes: the positions split into two index vectors).
  static constexpr int64_t kExpandedBlock = 128;
  static constexpr int kSparsePanels = 1;
  static constexpr int kStoredRows = 4;  // most that use a block once per load: positions are split in registers

  template <int R, class Rows, bool kStored = false>
  static void sparse(const sparseq::Operands& o, int32_t* acc, int64_t stride, bool first) {
    const Vec ones = _mm256_set1_epi16(1);
    Acc c[R][1];
    load_tile<R, 1>(c, acc, stride, first ? o.start : nullptr);
    const sparseq::BlockRef* refs = o.refs;
    const uint8_t* w = kStored ? o.weights : o.expanded;
    int64_t ahead = 0;
    Rows rows(o);
    const auto each = [&](uint32_t blocks, auto&& body) SPARSEQ_INLINE {
      for (uint32_t b = 0; b < blocks; ++b, ++refs, w += kStored ? 96 : 128, ahead += kStored ? 96 : 64) {
        prefetch<kStored ? 128 : 64>(o.next, ahead);
        const Vec position = load(w + 64);
        const Vec i0 = kStored ? low_nibbles(position) : position;
        const Vec i1 = kStored ? high_nibbles(position) : load(w + 96);
        body(rows.at(refs->tap, refs->offset()), i0, i1);
      }
    };
    each(o.count[sparseq::kQuad], [&](auto p, Vec i0, Vec i1) SPARSEQ_INLINE {
      const Vec w0 = load(w), w1 = load(w + 32);
      unroll<R>([&](auto r) SPARSEQ_INLINE {
        const Vec x = broadcast16(p[r]);
        const Vec sum =
            _mm256_add_epi16(_mm256_maddubs_epi16(shuffle(x, i0), w0), _mm256_maddubs_epi16(shuffle(x, i1), w1));
        accumulate(c[r][0], _mm256_madd_epi16(sum, ones));
      });
    });
    each(o.count[sparseq::kPair], [&](auto p, Vec i0, Vec i1) SPARSEQ_INLINE {
      const Vec w0 = load(w), w1 = load(w + 32);
      unroll<R>([&](auto r) SPARSEQ_INLINE {
        const Vec x = broadcast16(p[r]);
        accumulate(c[r][0], _mm256_madd_epi16(_mm256_maddubs_epi16(shuffle(x, i0), w0), ones));
        accumulate(c[r][0], _mm256_madd_epi16(_mm256_maddubs_epi16(shuffle(x, i1), w1), ones));
      });
    });
    each(o.count[sparseq::kWide], [&](auto p, Vec i0, Vec i1) SPARSEQ_INLINE {
      unroll<2>([&](auto step) SPARSEQ_INLINE {
        const Vec wv = load(w + 32 * step), index = step == 0 ? i0 : i1;
        const Vec size = _mm256_abs_epi8(wv), flip = flips(wv);
        unroll<R>([&](auto r) SPARSEQ_INLINE {
          const Vec y = _mm256_xor_si256(shuffle(broadcast16(p[r]), index), flip);
          accumulate(c[r][0], _mm256_madd_epi16(_mm256_maddubs_epi16(size, y), ones));
        });
      });
    });
    store_tile<R, 1>(c, acc, stride);
  }

  static void expand_sparse(const uint8_t* from, uint8_t* to, uint32_t blocks, int64_t pitch) {
    for (uint32_t b = 0; b < blocks; ++b, from += 96, to += pitch) {
      const Vec index = load(from + 64);
      store(to, load(from));
      store(to + 32, load(from + 32));
      store(to + 64, low_nibbles(index));
      store(to + 96, high_nibbles(index));
    }
  }

 private:
  // What the bits of inputs are flipped by, where a weight is negative and where it is not.
  static Vec flips(Vec w) {
    return _mm256_xor_si256(_mm256_cmpgt_epi8(zero(), w), _mm256_set1_epi8(static_cast<char>(0x80)));
  }
  // Operands from memory again and again, where no register is free (see accumulate).
  SPARSEQ_INLINE static Vec multiply_memory(Vec x, const uint8_t* w) {
#ifdef SPARSEQ_PORTABLE_INTRINSICS
    return _mm256_maddubs_epi16(x, load(w));
#else
    Vec y;
    asm volatile("vpmaddubsw %2, %1, %0" : "=x"(y) : "x"(x), "m"(*vec(w)));
    return y;
#endif
  }
  SPARSEQ_INLINE static Vec xor_memory(Vec x, const uint8_t* from) {
#ifdef SPARSEQ_PORTABLE_INTRINSICS
    return _mm256_xor_si256(x, load(from));
#else
    Vec y;
    asm volatile("vpxor %2, %1, %0" : "=x"(y) : "x"(x), "m"(*vec(from)));
    return y;
#endif
  }
  SPARSEQ_INLINE static Vec reload(const uint8_t* from) {
#ifdef SPARSEQ_PORTABLE_INTRINSICS
    return load(from);
#else
    Vec y;
    asm volatile("vmovdqa %1, %0" : "=x"(y) : "m"(*vec(from)));
    return y;
#endif
  }
  template <int R, int V>
  SPARSEQ_INLINE static void load_tile(Acc (&c)[R][V], const int32_t* acc, int64_t stride, const int32_t* start) {
    const int32_t* from = start == nullptr ? acc : start;
    const int64_t step = start == nullptr ? stride : 0;
    unroll<R>([&](auto r) SPARSEQ_INLINE {
      unroll<V>([&](auto v) SPARSEQ_INLINE { c[r][v] = load_acc(from + r * step + v * kLanes); });
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
