// The epilogue over a float trait: int32 accumulators of a few rows -> what core/epilogue.h describes.
// kFromZero: the accumulators began at 0; else at starts(), where the activations have one zero point.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../core/epilogue.h"
#include "../core/functions.h"
#include "../core/half.h"
#include "unroll.h"

namespace {

template <class F, bool kFromZero = true>
struct EpilogueKernel {
  using Float = typename F::Float;
  using Int = typename F::Int;
  static constexpr int kLanes = F::kLanes;
  static constexpr int kMaxWidth = 64, kBufferRows = 16;
  static constexpr bool kFours = requires { typename F::FourToBytes; };

  // What is known of the numbers that become bytes: nothing; |y| < 2^60, and the scale one of ByteGrid's; the
  // quotient fits an int32, too, and so whatever the activation is, bytes are bounded by saturating packs.
  enum class Reach { any, bounded, narrow };

  // The channels' constants, padded to whole vectors so that the row loop never looks at the tail.
  alignas(64) float multiplier[kMaxWidth];
  alignas(64) float bias[kMaxWidth];
  alignas(64) int32_t shift[kMaxWidth];  // zero * weight_sum; with row_zero the weight sums alone
  const sparseq::Epilogue& e;
  int64_t channel;
  int64_t count;
  Reach reach;

  EpilogueKernel(const sparseq::Epilogue& epilogue, const int32_t* sums, int64_t channel0, int64_t channels)
      : e(epilogue), channel(channel0), count(channels) {
    const int64_t padded = (channels + kLanes - 1) / kLanes * kLanes;
    const auto bytes = static_cast<std::size_t>(4 * channels), rest = static_cast<std::size_t>(4 * (padded - channels));
    std::memcpy(multiplier, e.multiplier + channel0, bytes);
    std::memcpy(shift, sums + channel0, bytes);
    if (e.bias != nullptr)
      std::memcpy(bias, e.bias + channel0, bytes);
    else
      for (int64_t v = 0; v < channels; ++v) bias[v] = -0.0f;  // y + -0 is y, of every y
    std::memset(multiplier + channels, 0, rest);
    std::memset(shift + channels, 0, rest);
    std::memset(bias + channels, 0, rest);
    if (e.row_zero == nullptr)
      for (int64_t v = 0; v < padded; v += kLanes)
        F::store_int(shift + v, F::mul(F::set_int(e.zero), F::load_int(shift + v)));
    reach = reach_of();
  }

  // [channels], padded: minus the zero point's share, and `more`, which may be null; whether there is either.
  bool starts(int32_t* to, const int32_t* more = nullptr) const {
    const bool shifted = e.row_zero == nullptr && e.zero != 0;
    for (int64_t v = 0; v < count; v += kLanes) {
      const Int from = more == nullptr ? F::set_int(0) : F::load_int(more + v);
      F::store_int(to + v, shifted ? F::sub(from, F::load_int(shift + v)) : from);
    }
    return shifted || more != nullptr;
  }

  // Lines that `rows` will write and read: a store that misses L1 holds up those behind it (Zen 3: 12544 x 24 -> 144 of
  // 2:4 weights 10 % faster, depthwise no faster).
  void fetch(int64_t row0, int64_t row_count) const {
    const int bytes = size(e.output_type), other = size(e.residual_type);
    const auto* to = static_cast<const uint8_t*>(e.output) + (row0 * e.output_stride + channel) * bytes;
    for (int64_t i = 0; i < row_count; ++i) __builtin_prefetch(to + i * e.output_stride * bytes, 1, 3);
    if (e.residual_type == sparseq::Element::none) return;
    const auto* from = static_cast<const uint8_t*>(e.residual) + (row0 * e.residual_stride + channel) * other;
    for (int64_t i = 0; i < row_count; ++i) __builtin_prefetch(from + i * e.residual_stride * other, 0, 3);
  }

  void rows(const int32_t* acc, int64_t stride, int64_t row0, int64_t row_count) const {
    const int64_t whole = common() ? count / kLanes * kLanes : 0;
    for (int64_t v = 0, step = kLanes; v < whole; v += step)
      by_types([&]<class Y, class R, Reach kReach>(Y, R, std::integral_constant<Reach, kReach>) {
        const int64_t to_stride = e.output_stride;
        Y* to = static_cast<Y*>(e.output) + row0 * to_stride + channel + v;
        if (Clamp<F>::covers(e.activation)) {
          step = whole - v >= 2 * kLanes ? 2 * kLanes : kLanes;
          return step > kLanes
                     ? columns<kReach, Y, R, 2>(acc + v, stride, row0, row_count, v, e.activation, to, to_stride)
                     : columns<kReach, Y, R, 1>(acc + v, stride, row0, row_count, v, e.activation, to, to_stride);
        }
        alignas(64) float buffer[kBufferRows * kLanes];  // a loop for the sums, one for the activation
        for (int64_t i = 0; i < row_count; i += kBufferRows) {
          const int64_t some = row_count - i < kBufferRows ? row_count - i : kBufferRows;
          columns<Reach::any, float, R, 1>(acc + i * stride + v, stride, row0 + i, some, v, sparseq::Activation::none,
                                           buffer, kLanes);
          activate<kReach != Reach::any>(buffer, to + i * to_stride, to_stride, some);
        }
      });
    if (whole == count) return;
    for (int64_t i = 0; i < row_count; ++i) {
      const int64_t m = row0 + i;
      for (int64_t v = whole; v < count; v += kLanes) {
        Int offset = F::load_int(shift + v);
        if (e.row_zero != nullptr) offset = F::mul(F::set_int(e.row_zero[m]), offset);
        Int exact = F::load_int(acc + i * stride + v);
        if (kFromZero || e.row_zero != nullptr) exact = F::sub(exact, offset);
        Float y = F::mul(F::to_float(exact), F::load(multiplier + v));
        if (e.row_scale != nullptr) y = F::mul(y, F::set(e.row_scale[m]));
        y = F::add(y, F::load(bias + v));
        const int64_t left = count - v < kLanes ? count - v : kLanes;
        if (e.residual_type != sparseq::Element::none) y = F::add(y, residual(m, v, left));
        store(Functions<F>::choose(e.activation, [&](auto activation) { return activation(y); }), m, v, left);
      }
    }
  }

  struct None {};

 private:
  // The constants of V neighbouring vectors of channels, from v on.
  template <class R, int V>
  struct Channels {
    Int offset[V];
    Float scale[V], add[V], residual_scale;
    typename F::Offset residual_offset;

    Channels(const EpilogueKernel& k, int64_t v)
        : residual_scale(F::set(k.e.residual_scale)), residual_offset(k.e.residual_zero_point) {
      unroll<V>([&](auto i) SPARSEQ_INLINE {
        offset[i] = F::load_int(k.shift + v + i * kLanes);
        scale[i] = F::load(k.multiplier + v + i * kLanes), add[i] = F::load(k.bias + v + i * kLanes);
      });
    }
    // Of vector i of a row whose sums and residuals these are.
    SPARSEQ_INLINE Float reals(const int32_t* acc, const R* from, auto i) const {
      Int exact = F::load_int(acc + i * kLanes);
      if (kFromZero) exact = F::sub(exact, offset[i]);
      Float y = F::add(F::mul(F::to_float(exact), scale[i]), add[i]);
      if constexpr (std::is_same_v<R, float>) y = F::add(y, F::load(from + i * kLanes));
      if constexpr (std::is_same_v<R, uint8_t>)
        y = F::add(y, F::mul(residual_offset(from + i * kLanes), residual_scale));
      return y;
    }
  };

 public:
  // Whether Fours makes the outputs, of residuals R or without.
  template <class R>
  bool narrow() const {
    const auto type = std::is_same_v<R, None> ? sparseq::Element::none : sparseq::Element::u8;
    return common() && reach == Reach::narrow && e.residual_type == type && Clamp<F>::covers(e.activation);
  }

  // Four vectors of sums to bytes: V neighbouring ones, from channel v on, of 4 / V rows.
  template <class R, int V>
  class Fours {
   public:
    static constexpr int kRows = 4 / V;
    struct Rows {
      const int32_t* acc[kRows];
      const R* from[kRows];  // residuals
      uint8_t* to[kRows];
    };
    Fours(const EpilogueKernel& k, int64_t v) : channels_(k, v), grid_(k.template grid<true>()), bytes_(bytes(k.e)) {}
    SPARSEQ_INLINE void operator()(const Rows& rows) const {
      Int n[4];
      unroll<kRows>([&](auto r) SPARSEQ_INLINE {
        unroll<V>([&](auto i) SPARSEQ_INLINE {
          n[r * V + i] = F::round(grid_.quotient(channels_.reals(rows.acc[r], rows.from[r], i)));
        });
      });
      bytes_.store(n, rows.to);
    }

   private:
    static typename F::FourToBytes bytes(const sparseq::Epilogue& e) {
      const bool relu6 = e.activation == sparseq::Activation::relu6;
      const int32_t zero = e.output_zero_point, low = e.output_low, high = e.output_high;
      const float six = relu6 ? __builtin_fminf(6.0f / e.output_scale, 255.0f) : 255.0f;
      const int32_t top = zero + static_cast<int32_t>(__builtin_rintf(six));
      return {zero, e.activation == sparseq::Activation::none || zero < low ? low : zero,
              relu6 && top < high ? top : high};
    }
    Channels<R, V> channels_;
    ByteGrid<F, true> grid_;
    typename F::FourToBytes bytes_;
  };

 private:
  // What most layers are: constants in registers, nothing decided per vector.
  bool common() const {
    using sparseq::Element;
    const bool residual =
        e.residual_type == Element::none || e.residual_type == Element::f32 || e.residual_type == Element::u8;
    const bool output = e.output_type != Element::f16 && e.output_type != Element::bf16;
    return residual && output && e.row_scale == nullptr && e.row_zero == nullptr;
  }

  Reach reach_of() const {
    using sparseq::Element;
    if ((e.residual_type != Element::none && e.residual_type != Element::u8) || !ByteGrid<F>::takes(e.output_scale))
      return Reach::any;
    // The largest sum; no less than each part, so that a NaN or an infinity among them fails both comparisons.
    const float most = 0x1p31f * largest(multiplier) + largest(bias) +
                       (e.residual_type == Element::none ? 0.0f : 0x1p9f * __builtin_fabsf(e.residual_scale));
    if (!(most < 0x1p60f)) return Reach::any;
    return kFours && e.output_type == Element::u8 && most < 0x1p30f * e.output_scale ? Reach::narrow : Reach::bounded;
  }
  float largest(const float* values) const {  // by their bits: a NaN's are above all others
    uint32_t most = 0;
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t size = std::bit_cast<uint32_t>(values[i]) & 0x7fffffffu;
      most = size > most ? size : most;
    }
    return std::bit_cast<float>(most);
  }

  // f(a value of the output's type, one of the residual's, the reach) of a common epilogue.
  template <class G>
  void by_types(G g) const {
    using sparseq::Element;
    constexpr std::integral_constant<Reach, Reach::any> no;
    const auto with = [&]<class Y>(Y y, auto limited) {
      e.residual_type == Element::none ? g(y, None{}, limited) : g(y, uint8_t{}, limited);
    };
    const bool bytes = e.output_type != Element::f32;
    if (e.residual_type == Element::f32) return bytes ? g(uint8_t{}, float{}, no) : g(float{}, float{}, no);
    if (!bytes) return with(float{}, no);
    if constexpr (kFours) {
      if (reach == Reach::narrow) return with(uint8_t{}, std::integral_constant<Reach, Reach::narrow>{});
    }
    reach == Reach::any ? with(uint8_t{}, no) : with(uint8_t{}, std::integral_constant<Reach, Reach::bounded>{});
  }

  template <class Grid, class Y>
  static void put(const Grid& grid, Float y, Y* to) {
    if constexpr (std::is_same_v<Y, float>)
      F::store(to, y);
    else
      grid.store(y, to);
  }
  template <bool kBounded = false>
  ByteGrid<F, kBounded> grid() const {
    return {e.output_scale, e.output_zero_point, e.output_low, e.output_high};
  }

  template <bool kBounded, class Y>
  void activate(const float* from, Y* to, int64_t to_stride, int64_t row_count) const {
    Functions<F>::choose(e.activation, [&, grid = grid<kBounded>()](auto f) {
      for (int64_t i = 0; i < row_count; ++i) put(grid, f(F::load(from + i * kLanes)), to + i * to_stride);
    });
  }

  // V neighbouring vectors of channels.
  template <Reach kReach, class Y, class R, int V>
  void columns(const int32_t* acc, int64_t stride, int64_t row0, int64_t row_count, int64_t v,
               sparseq::Activation activation, Y* to, int64_t to_stride) const {
    // Copied, since a byte written might be one of e's.
    const int64_t from_stride = std::is_same_v<R, None> ? 0 : e.residual_stride;
    const auto* from = static_cast<const R*>(e.residual);
    if constexpr (!std::is_same_v<R, None>) from += row0 * from_stride + channel + v;
    if constexpr (kReach == Reach::narrow) {
      const Fours<R, V> fours(*this, v);
      for (int64_t row = 0; row < row_count; row += Fours<R, V>::kRows) {
        typename Fours<R, V>::Rows rows;
        unroll<Fours<R, V>::kRows>([&](auto r) SPARSEQ_INLINE {
          const int64_t at = row + r < row_count ? row + r : row_count - 1;
          rows.acc[r] = acc + at * stride, rows.from[r] = from + at * from_stride, rows.to[r] = to + at * to_stride;
        });
        fours(rows);
      }
      return;
    }
    const Channels<R, V> channels(*this, v);
    const Clamp<F> clamp(activation);
    auto output = grid<kReach != Reach::any>();
    output.clamp(activation);
    for (int64_t row = 0; row < row_count; ++row, to += to_stride) {
      Float y[V];
      unroll<V>([&](auto i) SPARSEQ_INLINE { y[i] = channels.reals(acc + row * stride, from + row * from_stride, i); });
      if constexpr (std::is_same_v<Y, float>)
        unroll<V>([&](auto i) SPARSEQ_INLINE { F::store(to + i * kLanes, clamp(y[i])); });
      else if constexpr (V == 2)
        output.store(y[0], y[1], to);
      else
        output.store(y[0], to);
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

  void store(Float y, int64_t m, int64_t v, int64_t left) const {
    const int bytes = size(e.output_type);
    auto* to = static_cast<uint8_t*>(e.output) + (m * e.output_stride + channel + v) * bytes;
    alignas(64) uint8_t tail[4 * kLanes];
    uint8_t* at = left < kLanes ? tail : to;
    switch (e.output_type) {
      case sparseq::Element::f32: F::store(reinterpret_cast<float*>(at), y); break;
      case sparseq::Element::bf16: F::store(reinterpret_cast<sparseq::BFloat16*>(at), y); break;
      case sparseq::Element::f16: F::store(reinterpret_cast<sparseq::Half*>(at), y); break;
      default: grid().store(y, at);
    }
    if (left < kLanes) std::memcpy(to, tail, static_cast<std::size_t>(left * bytes));
  }
};

}  // namespace
