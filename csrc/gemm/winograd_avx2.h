// The AVX2 kernel of winograd.h.
#pragma once
#include <cstdint>
#include <utility>

#include "../core/int8_avx2.h"
#include "epilogue_kernel.h"
#include "row_pointers.h"
#include "unroll.h"
#include "winograd.h"

namespace {

struct WinogradAvx2 : Avx2Bytes {
  static constexpr int kRows = 6;  // tiles of a product: 12 accumulators of the 16 registers
  static constexpr int64_t kPoints = sparseq::winograd::kPoints, kGroup = sparseq::winograd::kGroup;

  static void run(const sparseq::Tiles& w, const sparseq::Input& input, const sparseq::Epilogue& epilogue,
                  const sparseq::WorkPlan& plan, int64_t begin, int64_t end) {
    const sparseq::ConvShape& s = *input.conv;
    const int64_t channels = w.shape.in_channels, outputs = w.shape.out_channels;
    const int64_t strips = sparseq::winograd::strips(s), in_strip = sparseq::winograd::tiles(s);
    const int64_t groups = (outputs + kGroup - 1) / kGroup, most = plan.row_block * in_strip;
    const int64_t v_size = 2 * kPoints * most * channels, m_size = 4 * kPoints * most * kGroup;
    const int64_t u_size = 2 * 4 * channels * kGroup, line_size = 4 * 2 * 2 * in_strip * kGroup;
    uint8_t* scratch = sparseq::thread_scratch(static_cast<std::size_t>(v_size + m_size + u_size + line_size));
    auto* v = reinterpret_cast<int16_t*>(scratch);
    auto* m = reinterpret_cast<int32_t*>(scratch + v_size);
    auto* u = reinterpret_cast<int16_t*>(scratch + v_size + m_size);
    auto* lines = reinterpret_cast<int32_t*>(scratch + v_size + m_size + u_size);
    int64_t transformed = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t group = item % groups, block = item / groups, first = block * plan.row_block;
      const int64_t count = smaller(plan.row_block, s.batch * strips - first), tiles = count * in_strip;
      if (block != transformed) {
        for (int64_t i = 0; i < count; ++i)
          strip(input, channels, (first + i) / strips, (first + i) % strips, v + i * in_strip * channels,
                tiles * channels);
        transformed = block;
      }
      unroll<4>([&](auto i) {  // a row of points at a time, so that its U stays near
        weights<i>(w.winograd + group * 9 * channels * kGroup, channels / 2, u);
        for (int64_t j = 0; j < 4; ++j) {
          const int64_t point = 4 * i + j;
          product(v + point * tiles * channels, u + j * channels * kGroup, channels, tiles, m + point * tiles * kGroup);
        }
      });
      const int64_t channel = group * kGroup;
      const EpilogueKernel<Avx2Float> finish(epilogue, w.weight_sum, channel, smaller(kGroup, outputs - channel));
      for (int64_t i = 0; i < count; ++i) {
        const int64_t image = (first + i) / strips, y = (first + i) % strips * 2;
        back(m + i * in_strip * kGroup, tiles * kGroup, in_strip, lines);
        for (int64_t line = 0; line < 2 && y + line < s.out_height; ++line)
          finish.rows(lines + line * 2 * in_strip * kGroup, kGroup, (image * s.out_height + y + line) * s.out_width,
                      s.out_width);
      }
    }
  }

 private:
  static Vec load16(const int16_t* p) { return _mm256_loadu_si256(vec(p)); }
  static Vec plus(Vec a, Vec b) { return _mm256_add_epi16(a, b); }
  static Vec minus(Vec a, Vec b) { return _mm256_sub_epi16(a, b); }

  // B^T over four values.
  SPARSEQ_INLINE static void transform(const Vec (&d)[4], Vec (&t)[4]) {
    t[0] = minus(d[0], d[2]);
    t[1] = plus(d[1], d[2]);
    t[2] = minus(d[2], d[1]);
    t[3] = minus(d[1], d[3]);
  }

  // V of a strip's tiles, [tile][channel] of each point.
  static void strip(const sparseq::Input& input, int64_t channels, int64_t image, int64_t index, int16_t* v,
                    int64_t point_stride) {
    const sparseq::ConvShape& s = *input.conv;
    const int64_t pitch = input.line != 0 ? input.line : s.width, tiles = sparseq::winograd::tiles(s);
    const uint8_t* outside = input.padding != nullptr ? input.padding : input.data;  // no output that counts reads it
    const auto column = [&](int64_t x, int64_t channel, Vec(&t)[4]) SPARSEQ_INLINE {
      Vec d[4];
      unroll<4>([&](auto i) SPARSEQ_INLINE {
        const int64_t y = 2 * index - s.pad_top + i;
        const bool inside = y >= 0 && y < s.height && x >= 0 && x < s.width;
        const uint8_t* pixel = inside ? input.data + ((image * s.height + y) * pitch + x) * input.stride : outside;
        d[i] = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(pixel + channel)));
      });
      transform(d, t);
    };
    for (int64_t channel = 0; channel < channels; channel += sparseq::winograd::kLanes) {
      Vec t[4][4];  // columns of B^T d
      column(-s.pad_left, channel, t[2]);
      column(1 - s.pad_left, channel, t[3]);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        unroll<4>([&](auto i) SPARSEQ_INLINE { t[0][i] = t[2][i], t[1][i] = t[3][i]; });
        column(2 * tile + 2 - s.pad_left, channel, t[2]);
        column(2 * tile + 3 - s.pad_left, channel, t[3]);
        int16_t* to = v + tile * channels + channel;
        unroll<4>([&](auto i) SPARSEQ_INLINE {
          const Vec row[4] = {t[0][i], t[1][i], t[2][i], t[3][i]};
          Vec points[4];
          transform(row, points);
          unroll<4>([&](auto j) SPARSEQ_INLINE {
            _mm256_store_si256(reinterpret_cast<__m256i*>(to + (4 * i + j) * point_stride), points[j]);
          });
        });
      }
    }
  }

  // Row I of (2 G) g (2 G)^T of a group, [point][pair of inputs][output][input].
  template <int I>
  static void weights(const int8_t* g, int64_t pairs, int16_t* u) {
    for (int64_t half = 0; half < 2 * pairs; ++half) {  // 8 outputs of a pair
      Vec t[3];
      unroll<3>([&](auto x) SPARSEQ_INLINE {
        const auto tap = [&](int y) SPARSEQ_INLINE {
          const int8_t* from = g + ((3 * y + x) * pairs * 2 + half) * 16;
          return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
        };
        if constexpr (I == 0 || I == 3) {
          t[x] = tap(I == 0 ? 0 : 2);
          t[x] = plus(t[x], t[x]);
        } else {
          const Vec outer = plus(tap(0), tap(2));
          t[x] = I == 1 ? plus(outer, tap(1)) : minus(outer, tap(1));
        }
      });
      const Vec outer = plus(t[0], t[2]);
      const Vec points[4] = {plus(t[0], t[0]), plus(outer, t[1]), minus(outer, t[1]), plus(t[2], t[2])};
      unroll<4>([&](auto j) SPARSEQ_INLINE {
        _mm256_store_si256(reinterpret_cast<__m256i*>(u + (j * pairs * 2 + half) * 16), points[j]);
      });
    }
  }

  static void product(const int16_t* v, const int16_t* u, int64_t channels, int64_t tiles, int32_t* m) {
    const int64_t steps = (tiles + kRows - 1) / kRows, rows = (tiles + steps - 1) / steps;
    for (int64_t first = 0; first < tiles; first += rows)
      with_rows(smaller(rows, tiles - first), std::make_integer_sequence<int, kRows>{}, v + first * channels, u,
                channels, m + first * kGroup);
  }
  template <int... R>
  static void with_rows(int64_t rows, std::integer_sequence<int, R...>, const int16_t* v, const int16_t* u,
                        int64_t channels, int32_t* m) {
    using Function = void (*)(const int16_t*, const int16_t*, int64_t, int32_t*);
    static constexpr Function table[] = {multiply<R + 1>...};
    table[rows - 1](v, u, channels, m);
  }
  template <int R>
  static void multiply(const int16_t* v, const int16_t* u, int64_t channels, int32_t* m) {
    Acc c[R][2];
    unroll<R>([&](auto r) SPARSEQ_INLINE { c[r][0] = c[r][1] = zero(); });
    for (int64_t i = 0; i < channels; i += 2, u += 2 * kGroup) {
      const Vec w0 = load16(u), w1 = load16(u + kGroup);
      unroll<R>([&](auto r) SPARSEQ_INLINE {
        const Vec x = broadcast4(reinterpret_cast<const uint8_t*>(v + r * channels + i));
        accumulate(c[r][0], _mm256_madd_epi16(x, w0));
        accumulate(c[r][1], _mm256_madd_epi16(x, w1));
      });
    }
    unroll<R>([&](auto r) SPARSEQ_INLINE {
      store_acc(m + r * kGroup, c[r][0]);
      store_acc(m + r * kGroup + kLanes, c[r][1]);
    });
  }

  // The sums of a strip, [2 lines][2 * tiles][group], from its products' [point][tile][group].
  static void back(const int32_t* m, int64_t point_stride, int64_t tiles, int32_t* lines) {
    for (int64_t tile = 0; tile < tiles; ++tile)
      for (int64_t lane = 0; lane < kGroup; lane += kLanes) {
        const int32_t* from = m + tile * kGroup + lane;
        const auto at = [&](int64_t i, int64_t j) { return load_acc(from + (4 * i + j) * point_stride); };
        Acc t[2][4];  // A^T M
        unroll<4>([&](auto j) SPARSEQ_INLINE {
          const Acc sum = _mm256_add_epi32(at(1, j), at(2, j)), difference = _mm256_sub_epi32(at(1, j), at(2, j));
          t[0][j] = _mm256_add_epi32(at(0, j), sum);
          t[1][j] = _mm256_sub_epi32(difference, at(3, j));
        });
        unroll<2>([&](auto i) SPARSEQ_INLINE {
          int32_t* to = lines + (i * 2 * tiles + 2 * tile) * kGroup + lane;
          const Acc sum = _mm256_add_epi32(t[i][1], t[i][2]), difference = _mm256_sub_epi32(t[i][1], t[i][2]);
          store_acc(to, _mm256_srai_epi32(_mm256_add_epi32(t[i][0], sum), 2));
          store_acc(to + kGroup, _mm256_srai_epi32(_mm256_sub_epi32(difference, t[i][3]), 2));
        });
      }
  }
};

}  // namespace
