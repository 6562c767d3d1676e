// Depthwise convolution over a float trait: every channel by itself, its taps in pairs (pack_depthwise).
//
// 16 outputs of 3x3 take 34 cycles on Zen 3, of 5x5 63: 3.6 a pair of taps (two loads, two interleavings, two
// shuffles, vpmaddwd and an addition for each vector), 16 the rest.
#pragma once
#include <cstdint>

#include "epilogue_kernel.h"
#include "gemm.h"
#include "row_pointers.h"
#include "unroll.h"

namespace {

template <class F>
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
    const int64_t taps = d.shape.kernel_height * d.shape.kernel_width;
    const auto bytes = static_cast<std::size_t>(kTile * taps) * sizeof(uint8_t*);
    auto* table = reinterpret_cast<const uint8_t**>(sparseq::thread_scratch(bytes));
    alignas(64) int32_t acc[kTile * kWidth];
    sparseq::Input source = input;
    source.conv = &d.shape;
    const auto whole = taps == 9 ? block<9> : taps == 25 ? block<25> : block<0>;
    for (int64_t row0 = begin; row0 < end; row0 += kTile) {
      const int64_t rows = end - row0 < kTile ? end - row0 : kTile;
      RowPointers::build(source, 0, taps, kTile, row0, rows, table);
      for (int64_t channel = 0; channel < d.channels; channel += kWidth) {
        const int64_t count = d.channels - channel < kWidth ? d.channels - channel : kWidth;
        whole(d, table, taps, channel, count, rows, acc);
        EpilogueKernel<F>(epilogue, d.weight_sum, channel, count).rows(acc, kWidth, row0, rows);
      }
    }
  }
};

}  // namespace
