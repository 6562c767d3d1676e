// The kernel of winograd.h for tiles of t x t outputs, over a trait of 16-bit lanes.
#pragma once
#include <cstdint>
#include <utility>

#include "epilogue_kernel.h"
#include "row_pointers.h"
#include "unroll.h"
#include "winograd.h"
#include "winograd_filters.h"
#include "winograd_weights.h"

namespace {

template <class W, int T>
struct WinogradTiles {
  using F = Filter<W, T>;
  using Vec = typename W::Vec;
  static constexpr int kRows = W::kRows;  // tiles of a product
  static constexpr int kSide = F::kInputs;
  static constexpr int64_t kNear = 16 * 1024;  // bytes of products that wait in L1
  static constexpr int64_t kApart = 32, kLanes = W::kLanes, kWords = W::kWords;
  static constexpr int64_t kGroup = W::kGroup, kVectors = kGroup / kLanes;

  static void run(const sparseq::Tiles& w, const sparseq::Input& input, const sparseq::Epilogue& epilogue,
                  const sparseq::WorkPlan& plan, int64_t begin, int64_t end) {
    const sparseq::ConvShape& s = *input.conv;
    const int64_t channels = w.shape.in_channels, outputs = w.shape.out_channels;
    const int64_t strips = sparseq::winograd::strips(s, T), in_strip = sparseq::winograd::tiles(s, T);
    const int64_t groups = (outputs + kGroup - 1) / kGroup, most = plan.row_block * in_strip;
    // From point to point; not a multiple of 4 KiB, or a tile's points would compete for one set of the cache.
    const int64_t v_block = most * kWords, v_step = (channels + kWords - 1) / kWords * v_block + kApart;
    const int64_t u_step = channels * kGroup + kApart;
    const int64_t near = near_tiles(most), m_step = smaller(near, most) * kGroup + kApart;
    const int64_t half_step = most * kGroup + kApart;
    // One behind the other in the thread's memory, all of whole cache lines.
    const int64_t v_size = 2 * kSide * kSide * v_step, u_size = 2 * 2 * kSide * u_step, m_size = 4 * kSide * m_step;
    const int64_t half_size = 4 * kSide * T * half_step, lines_size = 4 * T * T * in_strip * kGroup;
    const int64_t columns_size = 2 * kSide * (T * in_strip + 2) * kWords, fours_size = WinogradWeights<W>::room(w);
    uint8_t* at = sparseq::thread_scratch(
        static_cast<std::size_t>(v_size + u_size + m_size + half_size + lines_size + fours_size + columns_size));
    const auto part = [&](int64_t size) { return std::exchange(at, at + size); };
    auto* v = reinterpret_cast<int16_t*>(part(v_size));
    auto* u = reinterpret_cast<int16_t*>(part(u_size));
    auto* m = reinterpret_cast<int32_t*>(part(m_size));
    auto* half = reinterpret_cast<int32_t*>(part(half_size));
    auto* lines = reinterpret_cast<int32_t*>(part(lines_size));
    uint8_t* fours = part(fours_size);
    auto* columns = reinterpret_cast<int16_t*>(at);
    const auto transform = channels % kWords == 0 ? strip<W> : strip<typename W::Narrow>;
    int64_t transformed = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t group = item % groups, block = item / groups, first = block * plan.row_block;
      const int64_t count = smaller(plan.row_block, s.batch * strips - first), tiles = count * in_strip;
      if (block != transformed) {
        for (int64_t i = 0; i < count; ++i)
          transform(input, channels, (first + i) / strips, (first + i) % strips, v + i * in_strip * kWords, v_block,
                    v_step, columns);
        transformed = block;
      }
      const auto g = WinogradWeights<W>::group(w, group, fours);
      unroll<kSide / 2>([&](auto p) {  // two rows of points at a time, so that their U and products stay near
        weights<p>(g, channels, u, u_step);
        for (int64_t r = 0; r < 2; ++r) {
          const int64_t i = F::kShared[p][r];
          for (int64_t from = 0; from < tiles; from += near) {
            const int64_t some = smaller(near, tiles - from);
            for (int64_t j = 0; j < kSide; ++j)
              product(v + (kSide * i + j) * v_step + from * kWords, v_block, u + (kSide * r + j) * u_step, channels,
                      some, m + j * m_step);
            across(m, m_step, some, half + i * T * half_step + from * kGroup, half_step);
          }
        }
      });
      const int64_t channel = group * kGroup;
      const EpilogueKernel<typename W::FloatTrait> finish(epilogue, w.weight_sum, channel,
                                                          smaller(kGroup, outputs - channel));
      for (int64_t i = 0; i < count; ++i) {
        const int64_t image = (first + i) / strips, y = (first + i) % strips * T;
        down(half + i * in_strip * kGroup, half_step, in_strip, lines);
        for (int64_t line = 0; line < T && y + line < s.out_height; ++line)
          finish.rows(lines + line * T * in_strip * kGroup, kGroup, (image * s.out_height + y + line) * s.out_width,
                      s.out_width);
      }
    }
  }

 private:
  // V of a strip's tiles, [block of kWords channels][tile][channel] of each point, so that a product's tiles lie at
  // constant distances: B^T d column by column of the image, then across.
  template <class X>
  static void strip(const sparseq::Input& input, int64_t channels, int64_t image, int64_t index, int16_t* v,
                    int64_t block, int64_t point_stride, int16_t* columns) {
    constexpr int64_t kTogether = X::kWords;  // channels
    using Inputs = Filter<X, T>;
    const sparseq::ConvShape& s = *input.conv;
    const int64_t pitch = input.line != 0 ? input.line : s.width, tiles = sparseq::winograd::tiles(s, T);
    const uint8_t* outside = input.padding != nullptr ? input.padding : input.data;  // no output that counts reads it
    const int64_t y = T * index - s.pad_top, width = T * tiles + 2;
    const uint8_t* lines[kSide];
    unroll<kSide>([&](auto i) {
      lines[i] =
          y + i >= 0 && y + i < s.height ? input.data + (image * s.height + y + i) * pitch * input.stride : nullptr;
    });
    for (int64_t channel = 0; channel < channels; channel += kTogether) {
      for (int64_t column = 0; column < width; ++column) {
        const int64_t x = column - s.pad_left;
        const bool inside = x >= 0 && x < s.width;
        typename X::Vec d[kSide], t[kSide];
        unroll<kSide>([&](auto i) SPARSEQ_INLINE {
          const uint8_t* pixel = inside && lines[i] != nullptr ? lines[i] + x * input.stride : outside;
          d[i] = X::load_u8(pixel + channel);
        });
        Inputs::inputs(d, t);
        unroll<kSide>([&](auto i) SPARSEQ_INLINE { X::store(columns + (i * width + column) * kTogether, t[i]); });
      }
      unroll<kSide>([&](auto i) SPARSEQ_INLINE {
        const int16_t* from = columns + i * width * kTogether;
        int16_t* to = v + kSide * i * point_stride + channel / kWords * block + channel % kWords;
        for (int64_t tile = 0; tile < tiles; ++tile, from += T * kTogether, to += kWords) {
          typename X::Vec d[kSide], points[kSide];
          unroll<kSide>([&](auto j) SPARSEQ_INLINE { d[j] = X::load(from + j * kTogether); });
          Inputs::inputs(d, points);
          unroll<kSide>([&](auto j) SPARSEQ_INLINE { X::store(to + j * point_stride, points[j]); });
        }
      });
    }
  }

  // Two rows of U of a group, [row][point][pair of inputs][output][input].
  template <int P>
  static void weights(const sparseq::winograd::Fours& g, int64_t channels, int16_t* u, int64_t step) {
    for (int64_t i = 0; i < channels / 4; ++i, u += 4 * kGroup)
      unroll<kVectors>([&](auto k) SPARSEQ_INLINE {
        unroll<2>([&](auto pair) SPARSEQ_INLINE {
          Vec t[2][3];
          unroll<3>([&](auto x) SPARSEQ_INLINE {
            Vec taps[3];
            unroll<3>([&](auto y) SPARSEQ_INLINE {
              taps[y] = W::template load_pair<pair>(g.at + (3 * y + x) * g.tap + i * g.step + k * g.vector);
            });
            unroll<2>([&](auto r) SPARSEQ_INLINE { t[r][x] = F::template weights<F::kShared[P][r]>(taps); });
          });
          int16_t* to = u + 2 * pair * kGroup + k * kWords;
          unroll<2>([&](auto r) SPARSEQ_INLINE {
            unroll<kSide>([&](auto j)
                              SPARSEQ_INLINE { W::store(to + (kSide * r + j) * step, F::template weights<j>(t[r])); });
          });
        });
      });
  }

  static void product(const int16_t* v, int64_t block, const int16_t* u, int64_t channels, int64_t tiles, int32_t* m) {
    const int64_t steps = (tiles + kRows - 1) / kRows, rows = (tiles + steps - 1) / steps;
    for (int64_t first = 0; first < tiles; first += rows)
      with_rows(smaller(rows, tiles - first), std::make_integer_sequence<int, kRows>{}, v + first * kWords, block, u,
                channels, m + first * kGroup);
  }
  template <int... R>
  static void with_rows(int64_t rows, std::integer_sequence<int, R...>, const int16_t* v, int64_t block,
                        const int16_t* u, int64_t channels, int32_t* m) {
    using Function = void (*)(const int16_t*, int64_t, const int16_t*, int64_t, int32_t*);
    static constexpr Function table[] = {multiply<R + 1>...};
    table[rows - 1](v, block, u, channels, m);
  }
  template <int R>
  static void multiply(const int16_t* v, int64_t block, const int16_t* u, int64_t channels, int32_t* m) {
    Vec c[R][kVectors];
    unroll<R>([&](auto r) SPARSEQ_INLINE { unroll<kVectors>([&](auto k) SPARSEQ_INLINE { c[r][k] = W::zero(); }); });
    for (int64_t left = channels; left > 0; left -= kWords, v += block) {
      const int16_t* const end = v + smaller(left, kWords);
      for (const int16_t* pair = v; pair != end; pair += 2, u += 2 * kGroup) {
        Vec w[kVectors];
        unroll<kVectors>([&](auto k) SPARSEQ_INLINE { w[k] = W::load(u + k * kWords); });
        unroll<R>([&](auto r) SPARSEQ_INLINE { W::dot(c[r], pair + r * kWords, w); });
      }
    }
    unroll<R>([&](auto r) SPARSEQ_INLINE {
      unroll<kVectors>([&](auto k) SPARSEQ_INLINE { W::store(m + r * kGroup + k * kLanes, c[r][k]); });
    });
  }

  // Tiles whose products with a row of points stay in L1 until `across` reads them: whole calls of `multiply`.
  static int64_t near_tiles(int64_t tiles) {
    const int64_t steps = (tiles + kRows - 1) / kRows, rows = (tiles + steps - 1) / steps;
    const int64_t fit = kNear / (4 * kSide * kGroup * rows);
    return rows * (fit > 1 ? fit : 1);
  }

  // A row of points [point][tile][group] times A.
  static void across(const int32_t* m, int64_t stride, int64_t tiles, int32_t* to, int64_t to_stride) {
    for (int64_t i = 0; i < tiles * kGroup; i += kLanes)
      outputs(m + i, stride, [&](auto j, Vec y) SPARSEQ_INLINE { W::store(to + j * to_stride + i, y); });
  }

  // A^T times these, divided: the sums of a strip, [T lines][T * tiles][group].
  static void down(const int32_t* half, int64_t stride, int64_t tiles, int32_t* lines) {
    for (int64_t tile = 0; tile < tiles; ++tile)
      unroll<T>([&](auto j) SPARSEQ_INLINE {
        for (int64_t lane = 0; lane < kGroup; lane += kLanes)
          outputs(half + j * stride + tile * kGroup + lane, T * stride, [&](auto i, Vec y) SPARSEQ_INLINE {
            if constexpr (F::kInverse != 1) y = W::mul32(y, F::kInverse);
            y = W::template shift_right32<F::kShift[i] + F::kShift[j]>(y);
            W::store(lines + (i * T * tiles + T * tile + j) * kGroup + lane, y);
          });
      });
  }

  template <class Store>
  SPARSEQ_INLINE static void outputs(const int32_t* from, int64_t stride, Store&& store) {
    Vec m[kSide], y[T];
    unroll<kSide>([&](auto i) SPARSEQ_INLINE { m[i] = W::load(from + i * stride); });
    F::outputs(m, y);
    unroll<T>([&](auto i) SPARSEQ_INLINE { store(i, y[i]); });
  }
};

template <class W>
struct WinogradKernel {
  static constexpr sparseq::WinogradLayout kLayout = {W::kGroup, W::kDirect, W::kDirect24};
  static void run(const sparseq::Tiles& w, const sparseq::Input& input, const sparseq::Epilogue& epilogue,
                  const sparseq::WorkPlan& plan, int64_t begin, int64_t end) {
    (plan.winograd == 2 ? WinogradTiles<W, 2>::run : WinogradTiles<W, 4>::run)(w, input, epilogue, plan, begin, end);
  }
};

}  // namespace
