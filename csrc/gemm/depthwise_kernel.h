// Depthwise convolution over a float trait: every channel by itself, its taps in pairs (pack_depthwise).
//
// 16 outputs take 36 cycles of Zen 3 with 3x3 taps, 24 where columns are shared (depthwise_columns.h), 65 with 5x5: a
// pair of taps 3.6, the requantisation and what surrounds it 16.
#pragma once
#include <cstdint>

#include "epilogue_kernel.h"
#include "gemm.h"
#include "row_pointers.h"
#include "unroll.h"

namespace {

// Columns: sums of neighbouring outputs of 3x3 (depthwise_columns.h), or void.
template <class F, class Columns>
struct DepthwiseKernel {
  using Int = typename F::Int;
  static constexpr int kLanes = F::kLanes, kTile = 16, kWidth = EpilogueKernel<F>::kMaxWidth;

  // Sums of one vector of channels, or of two, for some output pixels; weights: of the first pair, `padded` apart from
  // pair to pair. An odd number of taps leaves the last pair with a weight of 0 for what is then its own first tap
  // again. kTaps 0: any number.
  template <int kTaps, bool kTwo>
  static void pixels(const uint8_t* const* table, int64_t channel, int64_t taps, const int32_t* weights, int64_t padded,
                     int64_t rows, int32_t* acc) {
    for (int64_t r = 0; r < rows; ++r, ++table, acc += kWidth) {
      Int sum[2] = {F::set_int(0), F::set_int(0)};
      const auto pair = [&](int64_t t, int64_t last) SPARSEQ_INLINE {
        const uint8_t* a = table[t * kTile] + channel;
        const uint8_t* b = table[(t < last ? t + 1 : t) * kTile] + channel;
        const int32_t* w = weights + t / 2 * padded;
        if constexpr (kTwo)
          F::add_pairs(sum, a, b, w);
        else
          sum[0] = F::add(sum[0], F::multiply_pairs(F::load_u8(a), F::load_u8(b), F::load_int(w)));
      };
      if constexpr (kTaps > 0)
        unroll<(kTaps + 1) / 2>([&](auto i) SPARSEQ_INLINE { pair(2 * i, kTaps - 1); });
      else
        for (int64_t t = 0; t < taps; t += 2) pair(t, taps - 1);
      F::store_int(acc, sum[0]);
      if constexpr (kTwo) F::store_int(acc + kLanes, sum[1]);
    }
  }

  template <int kTaps>
  static void block(const sparseq::Depthwise& d, const uint8_t* const* table, int64_t taps, int64_t channel,
                    int64_t count, int64_t rows, int32_t* acc) {
    const int64_t padded = (d.channels + 15) / 16 * 16;
    for (int64_t v = 0; v < count; v += 2 * kLanes) {
      const int32_t* weights = d.pairs + channel + v;
      const bool two = count - v > kLanes;  // loads then reach less than kInputSlack past the last channel
      const auto some = two ? pixels<kTaps, true> : pixels<kTaps, false>;
      some(table, channel + v, taps, weights, padded, rows, acc + v);
    }
  }

  static void run(const sparseq::Depthwise& d, const sparseq::Input& input, const sparseq::Epilogue& epilogue,
                  int64_t begin, int64_t end) {
    if constexpr (!std::is_void_v<Columns>) {
      const sparseq::ConvShape& s = d.shape;
      if (s.kernel_height == 3 && s.kernel_width == 3 && s.stride_width <= Columns::kStrides && s.dilation_width == 1)
        return by_columns(d, input, epilogue, begin, end);
    }
    const int64_t taps = d.shape.kernel_height * d.shape.kernel_width;
    const auto bytes = static_cast<std::size_t>(kTile * taps + RowPointers::kSlack) * sizeof(uint8_t*);
    auto* table = reinterpret_cast<const uint8_t**>(sparseq::thread_scratch(bytes));
    alignas(64) int32_t acc[kTile * kWidth];
    sparseq::Input source = input;
    source.conv = &d.shape;
    const auto whole = taps == 9 ? block<9> : taps == 25 ? block<25> : block<0>;
    for (int64_t row0 = begin; row0 < end; row0 += kTile) {
      const int64_t rows = smaller(kTile, end - row0);
      RowPointers::build(source, 0, taps, kTile, row0, rows, table);
      for (int64_t channel = 0; channel < d.channels; channel += kWidth) {
        const int64_t count = smaller(kWidth, d.channels - channel);
        const EpilogueKernel<F> finish(epilogue, d.weight_sum, channel, count);
        whole(d, table, taps, channel, count, rows, acc);
        finish.rows(acc, kWidth, row0, rows);
      }
    }
  }

  // Neighbouring outputs of one row of the image, and the columns that they meet.
  struct Segment {
    int64_t count;
    const uint8_t* const* rows[3];
  };

  // Up to kRun outputs at a time, of as many rows of the image as they lie in.
  static void by_columns(const sparseq::Depthwise& d, const sparseq::Input& input, const sparseq::Epilogue& epilogue,
                         int64_t begin, int64_t end) {
    constexpr int64_t kRun = 2 * kTile;
    const sparseq::ConvShape& s = d.shape;
    const int64_t padded = (d.channels + 15) / 16 * 16, width = s.out_width;
    const uint8_t* columns[3 * kRun * 3];  // a segment of one output meets three
    Segment segments[kRun];
    alignas(64) int32_t acc[kRun * kWidth];
    for (int64_t first = begin, some; first < end; first += some) {
      int count = 0;
      const uint8_t** to = columns;
      for (some = 0; some < kRun && first + some < end; ++count) {
        const int64_t at = first + some, x = at % width;
        const int64_t left = smaller(width - x, end - at);
        if (some > 0 && left > kRun - some) break;  // the next run takes them whole
        Segment& segment = segments[count];
        segment.count = smaller(left, kRun);
        for (int i = 0; i < 3; ++i) {
          segment.rows[i] = to;
          const int64_t met = (segment.count - 1) * s.stride_width + 3;
          to = row(input, s, at / width, i, x * s.stride_width - s.pad_left, met, to);
        }
        some += segment.count;
      }
      for (int64_t channel = 0; channel < d.channels; channel += kWidth) {
        const int64_t channels = smaller(kWidth, d.channels - channel);
        const EpilogueKernel<F> finish(epilogue, d.weight_sum, channel, channels);
        for (int64_t v = 0; v < channels; v += Columns::kChannels) {
          const Columns sums(d.pairs + channel + v, padded);
          int32_t* sum = acc + v;
          for (int i = 0; i < count; sum += segments[i++].count * kWidth)
            sums.sums(segments[i].rows, channel + v, s.stride_width, segments[i].count, sum, kWidth);
        }
        finish.rows(acc, kWidth, first, some);
      }
    }
  }

  // The pixels from `left` on of the input row that is tap row i of an output row (of all images); returns the end.
  static const uint8_t** row(const sparseq::Input& input, const sparseq::ConvShape& s, int64_t out_row, int i,
                             int64_t left, int64_t count, const uint8_t** to) {
    const int64_t y = out_row % s.out_height * s.stride_height - s.pad_top + i * s.dilation_height;
    const int64_t pitch = input.line != 0 ? input.line : s.width;
    const int64_t from = (out_row / s.out_height * s.height + y) * pitch;
    const bool inside = y >= 0 && y < s.height;
    for (int64_t x = left; x < left + count; ++x)
      *to++ = inside && x >= 0 && x < s.width ? input.data + (from + x) * input.stride : input.padding;
    return to;
  }
};

}  // namespace
