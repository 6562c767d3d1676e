// Rows of floats or bytes -> prepared u8 rows: quantised on a given grid or on each row's own, transposed
// on the way where the columns are planes (NCHW).
#pragma once
#include <cstdint>
#include <cstring>

#include "../core/functions.h"
#include "../core/half.h"
#include "gemm.h"

namespace {

template <class F>
struct RowsKernel {
  using Float = typename F::Float;
  using Int = typename F::Int;
  static constexpr int kLanes = F::kLanes;
  static_assert(kLanes % 8 == 0);  // the transposition works on squares of 8

  // Lanes past the end hold 0, which changes neither absmax nor a range that must contain 0.
  template <class T>
  static Float load_some(const T* p, int64_t count, int64_t step) {
    alignas(64) T lanes[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) lanes[i] = p[i * step];
    return F::load(lanes);
  }

  using Grid = ByteGrid<F>;

  // The scale of a row that is all zero, or whose scale would not be a positive finite number, is 1.
  static float usable(float scale) { return scale > 0.0f && scale < __builtin_inff() ? scale : 1.0f; }

  struct Range {
    float least, most;
  };

  template <class T>
  static Range range(const T* from, int64_t columns) {
    Float low = F::set(0.0f), high = F::set(0.0f);
    for (int64_t c = 0; c < columns; c += kLanes) {  // max(x, acc) returns acc where x is NaN
      const Float x = columns - c >= kLanes ? F::load(from + c) : load_some(from + c, columns - c, 1);
      low = F::min(x, low);
      high = F::max(x, high);
    }
    alignas(64) float lows[kLanes], highs[kLanes];
    F::store(lows, low);
    F::store(highs, high);
    Range r{0.0f, 0.0f};
    for (int i = 0; i < kLanes; ++i) {
      r.least = lows[i] < r.least ? lows[i] : r.least;
      r.most = highs[i] > r.most ? highs[i] : r.most;
    }
    return r;
  }

  template <class T>
  static Grid grid(const sparseq::RowQuantizer& q, const T* from, int64_t m, int32_t shift) {
    float scale = q.scale;
    int32_t zero_point = q.zero_point, low = q.low;
    if (q.dynamic) {
      const Range r = range(from, q.columns);
      if (low < 0) {
        scale = usable((r.most > -r.least ? r.most : -r.least) / static_cast<float>(q.high));
        zero_point = 0;
        low = -q.high;
      } else {
        const float first = static_cast<float>(low), last = static_cast<float>(q.high);
        scale = usable((r.most - r.least) / (last - first));
        alignas(64) int32_t zero[kLanes];
        F::store_int(zero, F::round(F::min(F::max(F::set(first - r.least / scale), F::set(first)), F::set(last))));
        zero_point = zero[0];
      }
    }
    if (q.row_scale != nullptr) q.row_scale[m] = scale;
    if (q.row_zero != nullptr) q.row_zero[m] = zero_point + shift;
    return {scale, zero_point, low, q.high, shift};
  }

  using Bytes = uint8_t __attribute__((vector_size(16)));  // punpck on x86, zip on ARM
  using Words = uint64_t __attribute__((vector_size(16)));

  template <int... I>
  static Bytes shuffle(Bytes a, Bytes b) {
#ifdef __clang__
    return __builtin_shufflevector(a, b, I...);
#else
    return __builtin_shuffle(a, b, Bytes{I...});
#endif
  }

  // Eight bytes each of eight lines -> eight times eight bytes, one of each line.
  static void transpose(const uint8_t (*lines)[kLanes], int64_t at, uint8_t* square) {
    Bytes v[8], w[4];
    for (int i = 0; i < 8; ++i) {
      uint64_t eight;
      std::memcpy(&eight, lines[i] + at, 8);
      v[i] = reinterpret_cast<Bytes>(Words{eight, 0});  // through a register: memory would not forward half
    }
    for (int i = 0; i < 4; ++i)
      w[i] = shuffle<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(v[2 * i], v[2 * i + 1]);
    for (int i = 0; i < 4; i += 2) {
      v[i] = shuffle<0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23>(w[i], w[i + 1]);
      v[i + 1] = shuffle<8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31>(w[i], w[i + 1]);
    }
    for (int i = 0; i < 2; ++i) {
      w[2 * i] = shuffle<0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23>(v[i], v[i + 2]);
      w[2 * i + 1] = shuffle<8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31>(v[i], v[i + 2]);
    }
    std::memcpy(square, w, 64);
  }

  // Eight pixels of three lines; writes 28 bytes.
  static void pixels(const uint8_t (*lines)[kLanes], int64_t at, uint8_t* to) {
    Bytes v[3];
    for (int i = 0; i < 3; ++i) {
      uint64_t eight;
      std::memcpy(&eight, lines[i] + at, 8);
      v[i] = reinterpret_cast<Bytes>(Words{eight, 0});
    }
    const Bytes first = shuffle<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(v[0], v[1]);
    const Bytes four = shuffle<0, 1, 16, 2, 3, 17, 4, 5, 18, 6, 7, 19, 31, 31, 31, 31>(first, v[2]);
    const Bytes next = shuffle<8, 9, 20, 10, 11, 21, 12, 13, 22, 14, 15, 23, 31, 31, 31, 31>(first, v[2]);
    std::memcpy(to, &four, 16);
    std::memcpy(to + 12, &next, 16);
  }

  // Columns that lie apart: squares of 8 columns by kLanes rows, transposed in registers.
  // line(from, count, to) makes prepared bytes of up to kLanes elements that are input_stride apart.
  template <class T, class Line>
  static void planes(const sparseq::RowQuantizer& given, int64_t begin, int64_t end, Line line) {
    const sparseq::RowQuantizer q = given;  // a byte written might be one of the original's
    const T* input = static_cast<const T*>(q.input);
    alignas(64) uint8_t lines[8][kLanes] = {};
    for (int64_t c = 0; c < q.columns; c += 8) {
      const int64_t columns = q.columns - c < 8 ? q.columns - c : 8;
      for (int64_t m = begin; m < end; m += kLanes) {
        const int64_t rows = end - m < kLanes ? end - m : kLanes;
        for (int64_t j = 0; j < columns; ++j) line(input + m * q.input_stride + (c + j) * q.input_step, rows, lines[j]);
        uint8_t* to = q.output + m * q.output_stride + c;
        // Images of three colours; what is written past the rows is written again after it.
        if (q.columns == 3 && q.output_stride == 3 && end - m >= kLanes + 2) {
          for (int p = 0; p < kLanes; p += 8) pixels(lines, p, to + 3 * p);
          continue;
        }
        for (int64_t p = 0; p < rows; p += 8) {
          alignas(16) uint8_t square[64];
          transpose(lines, p, square);
          const int64_t count = rows - p < 8 ? rows - p : 8;
          for (int64_t i = 0; i < count; ++i) {
            uint8_t* row = to + (p + i) * q.output_stride;
            // of few columns a row may spill over the next, which is written after it
            if (columns == 8 || (q.columns < 8 && (end - m - p - i) * q.output_stride >= 8))
              std::memcpy(row, square + 8 * i, 8);
            else
              for (int64_t j = 0; j < columns; ++j) row[j] = square[8 * i + j];
          }
        }
      }
    }
    for (int64_t m = begin; m < end; ++m) pad(q, m);
  }
  static void pad(const sparseq::RowQuantizer& q, int64_t m) {
    const int64_t rest = q.output_stride - q.columns;
    if (rest > 0) std::memset(q.output + m * q.output_stride + q.columns, 0, static_cast<std::size_t>(rest));
  }

  template <class T>
  static void floats(const sparseq::RowQuantizer& q, int64_t begin, int64_t end) {
    const int32_t shift = q.low < 0 ? 128 : 0;
    if (q.input_step != 1) {
      const Grid g(q.scale, q.zero_point, q.low, q.high, shift);
      planes<T>(q, begin, end, [g, step = q.input_stride](const T* from, int64_t count, uint8_t* to) {
        g.store(count == kLanes && step == 1 ? F::load(from) : load_some(from, count, step), to);
      });
      return;
    }
    for (int64_t m = begin; m < end; ++m) {
      const T* from = static_cast<const T*>(q.input) + m * q.input_stride;
      uint8_t* to = q.output + m * q.output_stride;
      const Grid g = grid(q, from, m, shift);
      const int64_t columns = q.columns;  // a byte written might be one of q's
      int64_t c = 0;
      for (; c + kLanes <= columns; c += kLanes) g.store(F::load(from + c), to + c);
      if (c < columns) {
        uint8_t tail[kLanes];
        g.store(load_some(from + c, columns - c, 1), tail);
        std::memcpy(to + c, tail, static_cast<std::size_t>(columns - c));
      }
      pad(q, m);
    }
  }

  static void quantize(const sparseq::RowQuantizer& q, int64_t begin, int64_t end) {
    switch (q.input_type) {
      case sparseq::Element::bf16: return floats<sparseq::BFloat16>(q, begin, end);
      case sparseq::Element::f16: return floats<sparseq::Half>(q, begin, end);
      default: return floats<float>(q, begin, end);
    }
  }

  static void flip_bytes(const uint8_t* __restrict from, uint8_t* __restrict to, int64_t count, uint8_t flip) {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<uint8_t>(from[i] ^ flip);
  }

  static void shift(const sparseq::RowQuantizer& q, int64_t begin, int64_t end) {
    const uint8_t flip = q.input_type == sparseq::Element::s8 ? 128 : 0;  // s8 + 128, as a bit pattern
    if (q.input_step != 1) {
      planes<uint8_t>(q, begin, end, [flip, step = q.input_stride](const uint8_t* from, int64_t count, uint8_t* to) {
        if (count == kLanes && step == 1)
          flip_bytes(from, to, kLanes, flip);
        else
          for (int64_t i = 0; i < count; ++i) to[i] = static_cast<uint8_t>(from[i * step] ^ flip);
      });
      return;
    }
    for (int64_t m = begin; m < end; ++m) {
      flip_bytes(static_cast<const uint8_t*>(q.input) + m * q.input_stride, q.output + m * q.output_stride, q.columns,
                 flip);
      pad(q, m);
    }
  }
};

}  // namespace
