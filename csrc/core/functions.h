// The activations over a float trait, step by step the float32 operations of sparseq/reference/functions.py.
#pragma once
#include <cstdint>

#include "epilogue.h"

namespace {

template <class F>
struct Functions {
  using Float = typename F::Float;
  using Int = typename F::Int;

  // The operand order lets a NaN through, as torch's clamp does.
  static Float clamp(Float x, float low, float high) { return F::min(F::set(high), F::max(F::set(low), x)); }
  static Float negative(Float x) { return F::sub(F::set(0.0f), x); }  // -0 for 0 only where no result can tell

  template <int kCount>
  static Float polynomial(Float x, const float (&coefficients)[kCount]) {
    Float p = F::set(coefficients[0]);
    for (int i = 1; i < kCount; ++i) p = F::fma(p, x, F::set(coefficients[i]));
    return p;
  }

  static Float exp(Float x) {
    constexpr float kExp[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                              4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
    x = clamp(x, -87.0f, 88.0f);
    // 1.5 * 2^23 has a unit of 1: the sum is rounded to the nearest whole n, which its low bits hold.
    const Float magic = F::set(12582912.0f);
    const Float shifted = F::fma(x, F::set(1.44269504088896341f), magic);
    const Float n = F::sub(shifted, magic);
    const Float r = F::fma(n, F::set(2.12194440e-4f), F::fma(n, F::set(-0.693359375f), x));
    const Float y = F::add(F::fma(F::mul(polynomial(r, kExp), r), r, r), F::set(1.0f));
    const Int power = F::add(F::template shift_left<23>(F::bits(shifted)), F::set_int(127 << 23));
    return F::mul(y, F::from_bits(power));
  }

  static Float one_plus_exp_negative(Float x) { return F::add(F::set(1.0f), exp(negative(x))); }
  static Float sigmoid(Float x) { return F::div(F::set(1.0f), one_plus_exp_negative(x)); }
  static Float silu(Float x) { return F::div(x, one_plus_exp_negative(x)); }

  static Float tanh(Float x) {
    const Float e = F::add(exp(F::mul(F::set(2.0f), x)), F::set(1.0f));
    return F::sub(F::set(1.0f), F::div(F::set(2.0f), e));
  }

  static Float gelu(Float x) {
    constexpr float kTail[] = {-0.00550591154f, 0.00648681214f, 0.0263845641f,  -0.0440581106f,
                               -0.0363292247f,  0.122383147f,   -0.0481413007f, -0.136489853f,
                               0.211697042f,    -0.0715904981f, -0.154967293f,  0.267242342f,
                               -0.215000778f,   0.102559231f,   -0.0281371064f, 0.00346696307f};
    const Float zero = F::set(0.0f);
    const Float a = F::min(F::set(5.4f), F::from_bits(F::bit_and(F::bits(x), F::set_int(INT32_MAX))));
    const Float tail = polynomial(F::fma(a, F::set(0.37037036f), F::set(-1.0f)), kTail);
    return F::fma(F::sub(zero, a), tail, F::max(zero, x));
  }

  static Float gelu_tanh(Float x) {
    const Float cube = F::mul(F::mul(F::mul(x, x), x), F::set(0.044715f));
    return F::div(x, one_plus_exp_negative(F::mul(F::set(1.5957691216057308f), F::add(x, cube))));
  }

  static Float hardsigmoid(Float x) { return F::div(clamp(F::add(x, F::set(3.0f)), 0.0f, 6.0f), F::set(6.0f)); }
  static Float hardswish(Float x) {
    return F::div(F::mul(x, clamp(F::add(x, F::set(3.0f)), 0.0f, 6.0f)), F::set(6.0f));
  }

  template <sparseq::Activation kActivation>
  struct Function {
    Float operator()(Float x) const {
      using sparseq::Activation;
      switch (kActivation) {
        case Activation::none: return x;
        case Activation::relu: return F::max(F::set(0.0f), x);
        case Activation::relu6: return clamp(x, 0.0f, 6.0f);
        case Activation::hardswish: return hardswish(x);
        case Activation::hardsigmoid: return hardsigmoid(x);
        case Activation::sigmoid: return sigmoid(x);
        case Activation::silu: return silu(x);
        case Activation::tanh: return tanh(x);
        case Activation::gelu: return gelu(x);
        case Activation::gelu_tanh: return gelu_tanh(x);
      }
    }
  };

  // f(the activation's Function): what is written over it is compiled once for each.
  template <class G>
  static auto choose(sparseq::Activation activation, G f) {
    using sparseq::Activation;
    switch (activation) {
      case Activation::none: break;
      case Activation::relu: return f(Function<Activation::relu>{});
      case Activation::relu6: return f(Function<Activation::relu6>{});
      case Activation::hardswish: return f(Function<Activation::hardswish>{});
      case Activation::hardsigmoid: return f(Function<Activation::hardsigmoid>{});
      case Activation::sigmoid: return f(Function<Activation::sigmoid>{});
      case Activation::silu: return f(Function<Activation::silu>{});
      case Activation::tanh: return f(Function<Activation::tanh>{});
      case Activation::gelu: return f(Function<Activation::gelu>{});
      case Activation::gelu_tanh: return f(Function<Activation::gelu_tanh>{});
    }
    return f(Function<Activation::none>{});
  }
};

// None, relu and relu6 are one pair of operations: min(high, max(low, y)), which lets a NaN through.
template <class F>
struct Clamp {
  typename F::Float low, high;
  static bool covers(sparseq::Activation a) { return a <= sparseq::Activation::relu6; }
  explicit Clamp(sparseq::Activation a)
      : low(F::set(a == sparseq::Activation::none ? -__builtin_inff() : 0.0f)),
        high(F::set(a == sparseq::Activation::relu6 ? 6.0f : __builtin_inff())) {}
  typename F::Float operator()(typename F::Float y) const { return F::min(high, F::max(low, y)); }
};

// Where bytes are stored: clamp(rne(y / scale) + zero, low, high), NaN -> zero; clamped before anything is added.
// The quotient is made of two multiplications where takes(scale): kBounded tells that it does, and that |y| is less
// than 2^60, so no NaN. Other y are brought to at most 2^70, beyond all bytes, where neither product spoils the other's
// sign.
template <class F, bool kBounded = false>
struct ByteGrid {
  typename F::Float scale, inverse, rest, low, high;
  typename F::Int zero;
  bool quick;
  static bool takes(float scale) { return scale >= 0x1p-60f && scale <= 0x1p60f; }
  ByteGrid(float scale_, int32_t zero_, int32_t low_, int32_t high_, int32_t shift = 0)  // stored + shift
      : scale(F::set(scale_)),
        inverse(F::set(1.0f / scale_)),
        rest(F::set(static_cast<float>(1.0 / scale_ - 1.0f / scale_))),
        low(F::set(static_cast<float>(low_ - zero_))),
        high(F::set(static_cast<float>(high_ - zero_))),
        zero(F::set_int(zero_ + shift)),
        quick(takes(scale_)) {}
  // As if Clamp came before: the division rises with y, so that bounds may follow it.
  void clamp(sparseq::Activation a) {
    if (a != sparseq::Activation::none) low = F::max(low, F::set(0.0f));
    if (a == sparseq::Activation::relu6) high = F::min(high, F::div(F::set(6.0f), scale));
  }
  __attribute__((always_inline)) typename F::Float quotient(typename F::Float y) const {
    if constexpr (kBounded) return F::quotient(y, scale, inverse, rest);
    if (!quick) return F::nan_to_zero(F::div(y, scale));
    return F::nan_to_zero(F::quotient(Functions<F>::clamp(y, -0x1p70f, 0x1p70f), scale, inverse, rest));
  }
  __attribute__((always_inline)) typename F::Int integers(typename F::Float y) const {
    return F::add(F::round(F::min(F::max(quotient(y), low), high)), zero);
  }
  __attribute__((always_inline)) void store(typename F::Float y, uint8_t* to) const {
    F::store_low_bytes(to, integers(y));
  }
  // Two neighbouring vectors.
  __attribute__((always_inline)) void store(typename F::Float y0, typename F::Float y1, uint8_t* to) const {
    if constexpr (requires { F::store_low_bytes(to, integers(y0), integers(y1)); }) {
      F::store_low_bytes(to, integers(y0), integers(y1));
    } else {
      store(y0, to);
      store(y1, to + F::kLanes);
    }
  }
};

}  // namespace
