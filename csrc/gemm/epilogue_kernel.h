// The epilogue over a float trait: int32 accumulators of a few rows -> what core/epilogue.h describes.
#pragma once
#include <cstdint>
#include <cstring>

#include "../core/epilogue.h"
#include "../core/half.h"

namespace {

template <class F>
struct EpilogueKernel {
  using Float = typename F::Float;
  using Int = typename F::Int;
  static constexpr int kLanes = F::kLanes;
  static constexpr int kMaxWidth = 64;

  // The channels' constants, padded to whole vectors so that the row loop never looks at the tail.
  alignas(64) float multiplier[kMaxWidth];
  alignas(64) float bias[kMaxWidth];
  alignas(64) int32_t shift[kMaxWidth];  // zero * weight_sum; with row_zero the weight sums alone
  const sparseq::Epilogue& e;
  int64_t channel;
  int64_t count;

  EpilogueKernel(const sparseq::Epilogue& epilogue, const int32_t* sums, int64_t channel0, int64_t channels)
      : e(epilogue), channel(channel0), count(channels) {
    const int64_t padded = (channels + kLanes - 1) / kLanes * kLanes;
    const auto bytes = static_cast<std::size_t>(4 * channels), rest = static_cast<std::size_t>(4 * (padded - channels));
    std::memcpy(multiplier, e.multiplier + channel0, bytes);
    std::memcpy(shift, sums + channel0, bytes);
    if (e.bias != nullptr) std::memcpy(bias, e.bias + channel0, bytes);
    std::memset(multiplier + channels, 0, rest);
    std::memset(shift + channels, 0, rest);
    std::memset(bias + channels, 0, rest);
    if (e.row_zero == nullptr)
      for (int64_t v = 0; v < padded; v += kLanes)
        F::store_int(shift + v, F::mul(F::set_int(e.zero), F::load_int(shift + v)));
  }

  void rows(const int32_t* acc, int64_t stride, int64_t row0, int64_t row_count) const {
    // What most layers are: constants in registers, nothing decided per vector.
    const bool plain = e.output_type == sparseq::Element::f32 && e.residual_type == sparseq::Element::none &&
                       e.row_scale == nullptr && e.row_zero == nullptr &&
                       e.activation != sparseq::Activation::hardswish;
    const int64_t whole = plain ? count / kLanes * kLanes : 0;
    for (int64_t v = 0; v < whole; v += kLanes)
      e.bias != nullptr ? column<true>(acc, stride, row0, row_count, v)
                        : column<false>(acc, stride, row0, row_count, v);
    if (whole == count) return;
    for (int64_t i = 0; i < row_count; ++i) {
      const int64_t m = row0 + i;
      for (int64_t v = whole; v < count; v += kLanes) {
        Int offset = F::load_int(shift + v);
        if (e.row_zero != nullptr) offset = F::mul(F::set_int(e.row_zero[m]), offset);
        const Int exact = F::sub(F::load_int(acc + i * stride + v), offset);
        Float y = F::mul(F::to_float(exact), F::load(multiplier + v));
        if (e.row_scale != nullptr) y = F::mul(y, F::set(e.row_scale[m]));
        if (e.bias != nullptr) y = F::add(y, F::load(bias + v));
        const int64_t left = count - v < kLanes ? count - v : kLanes;
        if (e.residual_type != sparseq::Element::none) y = F::add(y, residual(m, v, left));
        store(activate(y), m, v, left);
      }
    }
  }

 private:
  template <bool kBias>
  void column(const int32_t* acc, int64_t stride, int64_t row0, int64_t row_count, int64_t v) const {
    const Int offset = F::load_int(shift + v);
    const Float scale = F::load(multiplier + v), add = F::load(bias + v);
    const float infinity = __builtin_inff();  // the operand order of min and max lets a NaN through
    const Float low = F::set(e.activation == sparseq::Activation::none ? -infinity : 0.0f);
    const Float high = F::set(e.activation == sparseq::Activation::relu6 ? 6.0f : infinity);
    float* to = static_cast<float*>(e.output) + row0 * e.output_stride + channel + v;
    for (int64_t i = 0; i < row_count; ++i, acc += stride, to += e.output_stride) {
      Float y = F::mul(F::to_float(F::sub(F::load_int(acc + v), offset)), scale);
      if (kBias) y = F::add(y, add);
      F::store(to, F::min(high, F::max(low, y)));
    }
  }

  static int size(sparseq::Element type) {
    switch (type) {
      case sparseq::Element::f32: return 4;
      case sparseq::Element::f16:
      case sparseq::Element::bf16: return 2;
      default: return 1;
    }
  }

  Float residual(int64_t m, int64_t v, int64_t left) const {
    const int bytes = size(e.residual_type);
    const auto* from = static_cast<const uint8_t*>(e.residual) + (m * e.residual_stride + channel + v) * bytes;
    alignas(64) uint8_t tail[4 * kLanes];
    if (left < kLanes) {  // never read past the row
      std::memset(tail, 0, sizeof tail);
      std::memcpy(tail, from, static_cast<std::size_t>(left * bytes));
      from = tail;
    }
    switch (e.residual_type) {
      case sparseq::Element::f32: return F::load(reinterpret_cast<const float*>(from));
      case sparseq::Element::bf16: return F::load(reinterpret_cast<const sparseq::BFloat16*>(from));
      case sparseq::Element::f16: return F::load(reinterpret_cast<const sparseq::Half*>(from));
      default: break;
    }
    const Int q = e.residual_type == sparseq::Element::u8 ? F::load_u8(from) : F::load_s8(from);
    return F::mul(F::to_float(F::sub(q, F::set_int(e.residual_zero_point))), F::set(e.residual_scale));
  }

  Float activate(Float y) const {
    const Float zero = F::set(0.0f), six = F::set(6.0f);
    switch (e.activation) {  // the operand order lets a NaN through, as torch does
      case sparseq::Activation::none: return y;
      case sparseq::Activation::relu: return F::max(zero, y);
      case sparseq::Activation::relu6: return F::min(six, F::max(zero, y));
      case sparseq::Activation::hardswish:
        return F::div(F::mul(y, F::min(six, F::max(zero, F::add(y, F::set(3.0f))))), six);
    }
    return y;
  }

  void store(Float y, int64_t m, int64_t v, int64_t left) const {
    const int bytes = size(e.output_type);
    auto* to = static_cast<uint8_t*>(e.output) + (m * e.output_stride + channel + v) * bytes;
    alignas(64) uint8_t tail[4 * kLanes];
    uint8_t* at = left < kLanes ? tail : to;
    switch (e.output_type) {
      case sparseq::Element::f32: F::store(reinterpret_cast<float*>(at), y); break;
      case sparseq::Element::bf16: F::store(reinterpret_cast<sparseq::BFloat16*>(at), y); break;
      case sparseq::Element::f16: F::store(reinterpret_cast<sparseq::Half*>(at), y); break;
      default: {
        const int32_t z = e.output_zero_point;
        const Float q = F::nan_to_zero(F::div(y, F::set(e.output_scale)));
        const Float low = F::set(static_cast<float>(e.output_low - z)),
                    high = F::set(static_cast<float>(e.output_high - z));
        F::store_low_bytes(at, F::add(F::round(F::min(F::max(q, low), high)), F::set_int(z)));
      }
    }
    if (left < kLanes) std::memcpy(to, tail, static_cast<std::size_t>(left * bytes));
  }
};

}  // namespace
