// float or bf16 rows -> prepared u8 rows, static or per-row dynamic scale; and int8 rows -> prepared rows.
#pragma once
#include <cstdint>
#include <cstring>

#include "gemm.h"

namespace {

template <class F>
struct RowsKernel {
  using Float = typename F::Float;
  using Int = typename F::Int;
  static constexpr int kLanes = F::kLanes;

  // Lanes past the end hold 0, which changes neither absmax nor a range that must contain 0.
  static Float load(const sparseq::RowQuantizer& q, int64_t m, int64_t c) {
    const int64_t left = q.columns - c;
    const int bytes = q.input_type == sparseq::Element::bf16 ? 2 : 4;
    const auto* from = static_cast<const uint8_t*>(q.input) + (m * q.input_stride + c) * bytes;
    alignas(64) uint8_t tail[4 * kLanes];
    if (left < kLanes) {
      std::memset(tail, 0, sizeof tail);
      std::memcpy(tail, from, static_cast<std::size_t>(left * bytes));
      from = tail;
    }
    return bytes == 2 ? F::load_bf16(reinterpret_cast<const uint16_t*>(from))
                      : F::load(reinterpret_cast<const float*>(from));
  }

  struct Parameters {
    float scale;
    int32_t zero_point, low, high, stored_shift;
  };

  // The scale of a row that is all zero, or whose scale would not be a positive finite number, is 1.
  static float usable(float scale) { return scale > 0.0f && scale < __builtin_inff() ? scale : 1.0f; }

  static Parameters parameters(const sparseq::RowQuantizer& q, int64_t m) {
    using sparseq::RowMode;
    if (q.mode == RowMode::fixed_u8) return {q.scale, q.zero_point, q.low, q.high, 0};
    if (q.mode == RowMode::fixed_s8) return {q.scale, q.zero_point, q.low, q.high, 128};
    Float low = F::set(0.0f), high = F::set(0.0f);
    for (int64_t c = 0; c < q.columns; c += kLanes) {  // max(x, acc) returns acc where x is NaN
      const Float x = load(q, m, c);
      low = F::min(x, low);
      high = F::max(x, high);
    }
    alignas(64) float lows[kLanes], highs[kLanes];
    F::store(lows, low);
    F::store(highs, high);
    float least = 0.0f, most = 0.0f;
    for (int i = 0; i < kLanes; ++i) {
      least = lows[i] < least ? lows[i] : least;
      most = highs[i] > most ? highs[i] : most;
    }
    if (q.mode == RowMode::dynamic_s8) {
      const float size = most > -least ? most : -least;
      return {usable(size / 127.0f), 0, -127, 127, 128};
    }
    const float scale = usable((most - least) / 255.0f);
    alignas(64) int32_t zero[kLanes];
    F::store_int(zero, F::round(F::min(F::max(F::set(-least / scale), F::set(0.0f)), F::set(255.0f))));
    return {scale, zero[0], 0, 255, 0};
  }

  static void quantize(const sparseq::RowQuantizer& q, int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      const Parameters p = parameters(q, m);
      if (q.row_scale != nullptr) q.row_scale[m] = p.scale;
      if (q.row_zero != nullptr) q.row_zero[m] = p.zero_point + p.stored_shift;
      uint8_t* to = q.output + m * q.output_stride;
      const Float scale = F::set(p.scale), low = F::set(static_cast<float>(p.low - p.zero_point)),
                  high = F::set(static_cast<float>(p.high - p.zero_point));
      const Int offset = F::set_int(p.zero_point + p.stored_shift);
      for (int64_t c = 0; c < q.columns; c += kLanes) {
        const Float x = F::nan_to_zero(F::div(load(q, m, c), scale));
        const Int value = F::add(F::round(F::min(F::max(x, low), high)), offset);
        if (q.columns - c >= kLanes) {
          F::store_low_bytes(to + c, value);
        } else {
          uint8_t tail[kLanes];
          F::store_low_bytes(tail, value);
          std::memcpy(to + c, tail, static_cast<std::size_t>(q.columns - c));
        }
      }
      if (q.output_stride > q.columns)
        std::memset(to + q.columns, 0, static_cast<std::size_t>(q.output_stride - q.columns));
    }
  }

  static void shift(const uint8_t* input, int64_t input_stride, int64_t columns, bool is_signed, uint8_t* output,
                    int64_t output_stride, int64_t begin, int64_t end) {
    const uint8_t flip = is_signed ? 128 : 0;  // s8 + 128, as a bit pattern
    for (int64_t m = begin; m < end; ++m) {
      const uint8_t* from = input + m * input_stride;
      uint8_t* to = output + m * output_stride;
      for (int64_t c = 0; c < columns; ++c) to[c] = static_cast<uint8_t>(from[c] ^ flip);
      if (output_stride > columns) std::memset(to + columns, 0, static_cast<std::size_t>(output_stride - columns));
    }
  }
};

}  // namespace
