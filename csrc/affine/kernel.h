// The affine loops, written once over the Vec trait. Included by each ISA file after its trait; all of it
// has internal linkage so that no ISA's copy can be picked for another.
#pragma once

#include "affine.h"
#include "formula.h"

namespace sparseq::affine {
namespace {

using VecParams = formula::Params<Vec>;

inline float zero_point_of(const Problem& p, int64_t channel) {
  float zero = 0;
  if (p.zero_point_kind == ZeroPointKind::int32)
    zero = float(static_cast<const int32_t*>(p.zero_point)[channel]);
  else if (p.zero_point_kind == ZeroPointKind::float32)
    zero = std::nearbyint(static_cast<const float*>(p.zero_point)[channel]);
  zero = zero == zero ? zero : 0.0f;
  zero = zero < p.quant_min ? p.quant_min : zero;
  return zero > p.quant_max ? p.quant_max : zero;
}

inline VecParams with_limits(const Problem& p, Vec scale, Vec zero) {
  return {scale, zero, Vec::set1(p.quant_min) - zero, Vec::set1(p.quant_max) - zero};
}

inline VecParams broadcast(const Problem& p, int64_t channel) {
  return with_limits(p, Vec::set1(p.scale[channel]), Vec::set1(zero_point_of(p, channel)));
}

// The parameters of sixteen neighbours where runs are short, from flat position i on.
inline VecParams gather(const Problem& p, int64_t i) {
  const int64_t inner = p.layout.inner, channels = p.layout.channels;
  int64_t channel = (i / inner) % channels, j = i % inner;
  if (inner == 1 && channel + 16 <= channels && p.zero_point_kind == ZeroPointKind::none) {
    return with_limits(p, Vec::load(p.scale + channel), Vec::set1(zero_point_of(p, channel)));
  }
  alignas(64) float scale[16], zero[16];
  for (int lane = 0; lane < 16; ++lane) {
    scale[lane] = p.scale[channel];
    zero[lane] = zero_point_of(p, channel);
    if (++j == inner) {
      j = 0;
      if (++channel == channels) channel = 0;
    }
  }
  return with_limits(p, Vec::load(scale), Vec::load(zero));
}

template <class T>
inline Vec load_some(const T* p, int64_t n) {
  T lanes[16] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return Vec::load(lanes);
}

template <class T>
inline void store_some(T* p, Vec v, int64_t n) {
  T lanes[16];
  v.store(lanes);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

// op(params, element of each input...) for a stretch that shares its parameters.
template <class Op, class Out, class... In>
inline void stretch(Op op, const VecParams& p, Out* out, int64_t begin, int64_t end, const In*... in) {
  int64_t i = begin;
  for (; i + 16 <= end; i += 16) op(p, Vec::load(in + i)...).store(out + i);
  if (i < end) store_some(out + i, op(p, load_some(in + i, end - i)...), end - i);
}

template <class Op, class Out, class... In>
inline void map(Op op, const Problem& problem, Out* out, int64_t begin, int64_t end, const In*... in) {
  const Layout& layout = problem.layout;
  if (layout.inner < kNarrow) {
    for (int64_t i = begin; i < end; i += 16)
      stretch(op, gather(problem, i), out, i, i + 16 < end ? i + 16 : end, in...);
    return;
  }
  for (int64_t i = begin; i < end;) {
    const int64_t run = i / layout.inner;
    const int64_t run_end = (run + 1) * layout.inner, stop = run_end < end ? run_end : end;
    stretch(op, broadcast(problem, run % layout.channels), out, i, stop, in...);
    i = stop;
  }
}

template <class T>
void quantize(const Problem& p, const void* x, uint8_t* q, int64_t begin, int64_t end) {
  map([](const VecParams& v, Vec a) { return formula::quantize(a, v); }, p, q, begin, end, static_cast<const T*>(x));
}

template <class Q, class T>
void dequantize(const Problem& p, const Q* q, void* y, int64_t begin, int64_t end) {
  map([](const VecParams& v, Vec a) { return formula::dequantize(a, v); }, p, static_cast<T*>(y), begin, end, q);
}

template <class T>
void fake_quantize(const Problem& p, const void* x, void* y, int64_t begin, int64_t end) {
  map([](const VecParams& v, Vec a) { return formula::fake_quantize(a, v); }, p, static_cast<T*>(y), begin, end,
      static_cast<const T*>(x));
}

template <class T>
void backward(const Problem& p, const void* grad, const void* x, void* grad_x, int64_t begin, int64_t end) {
  map([](const VecParams& v, Vec g, Vec a) { return formula::backward(g, a, v); }, p, static_cast<T*>(grad_x), begin,
      end, static_cast<const T*>(grad), static_cast<const T*>(x));
}

// A reducer turns positions into two results: start(), step(params, i, n), and finish of sixteen lanes.
// By runs a task is one segment; by columns it is a block of rows by kColumns columns.
template <class Reducer, class ParamsAt>
void reduce(const Reduction& r, Reducer reducer, ParamsAt params_at, Pair* partials, int64_t begin, int64_t end) {
  const Layout& layout = r.layout;
  for (int64_t task = begin; task < end; ++task) {
    if (!r.by_columns) {
      const int64_t run = task / r.parts, first = run * layout.inner + (task % r.parts) * kSegment;
      const int64_t run_end = (run + 1) * layout.inner;
      const int64_t last = first + kSegment < run_end ? first + kSegment : run_end;
      const auto p = params_at(first, run % layout.channels);
      auto state = reducer.start();
      int64_t i = first;
      for (; i + 16 <= last; i += 16) reducer.step(state, p, i);
      if (i < last) reducer.step_some(state, p, i, last - i);
      partials[task] = reducer.combine(state);
      continue;
    }
    const int64_t columns = layout.channels * layout.inner;
    const int64_t groups = (columns + kColumns - 1) / kColumns;
    const int64_t part = task / groups, row = part * r.rows;
    const int64_t row_end = row + r.rows < layout.outer ? row + r.rows : layout.outer;
    const int64_t column_end = (task % groups + 1) * kColumns;
    for (int64_t c = task % groups * kColumns; c < column_end && c < columns; c += 16) {
      const int64_t n = columns - c < 16 ? columns - c : 16;
      const auto p = params_at(c, -1);
      auto state = reducer.start();
      for (int64_t o = row; o < row_end; ++o) {
        if (n == 16)
          reducer.step(state, p, o * columns + c);
        else
          reducer.step_some(state, p, o * columns + c, n);
      }
      reducer.lanes(state, partials + part * columns + c, n);
    }
  }
}

template <class T>
struct LearnedBackward {
  const T *grad, *x;
  T* grad_x;
  struct State {
    Vec scale_sum, outside_sum;
  };
  State start() const { return {Vec::set1(0), Vec::set1(0)}; }
  void step(State& s, const VecParams& p, int64_t i) const {
    formula::learned_backward(Vec::load(grad + i), Vec::load(x + i), p, s.scale_sum, s.outside_sum).store(grad_x + i);
  }
  // grad = 0 in the missing lanes adds nothing
  void step_some(State& s, const VecParams& p, int64_t i, int64_t n) const {
    store_some(grad_x + i,
               formula::learned_backward(load_some(grad + i, n), load_some(x + i, n), p, s.scale_sum, s.outside_sum),
               n);
  }
  Pair combine(const State& s) const {
    Pair lane[16];
    lanes(s, lane, 16);
    double a = 0, b = 0;
    for (const Pair& l : lane) a += l.first, b += l.second;
    return {float(a), float(b)};
  }
  void lanes(const State& s, Pair* out, int64_t n) const {
    float a[16], b[16];
    s.scale_sum.store(a);
    s.outside_sum.store(b);
    for (int64_t i = 0; i < n; ++i) out[i] = {a[i], b[i]};
  }
};

template <class T>
struct MinMax {
  const T* x;
  struct State {
    Vec low, high, poison;  // poison: 0, or NaN once a NaN was seen
  };
  State start() const {
    return {Vec::set1(std::numeric_limits<float>::infinity()), Vec::set1(-std::numeric_limits<float>::infinity()),
            Vec::set1(0)};
  }
  template <class P>
  void step(State& s, const P&, int64_t i) const {
    add(s, Vec::load(x + i));
  }
  template <class P>
  void step_some(State& s, const P&, int64_t i, int64_t n) const {
    add(s, some(i, n));
  }
  // the missing lanes repeat the first value there
  Vec some(int64_t i, int64_t n) const {
    T lanes[16];
    for (int64_t l = 0; l < 16; ++l) lanes[l] = x[i + (l < n ? l : 0)];
    return Vec::load(lanes);
  }
  static void add(State& s, Vec v) {
    s.low = min(v, s.low);
    s.high = max(v, s.high);
    s.poison = select(ordered(v), s.poison, v);
  }
  Pair combine(const State& s) const {
    Pair lane[16];
    lanes(s, lane, 16);
    Pair r = lane[0];
    for (const Pair& l : lane) {
      r.first = l.first < r.first || l.first != l.first ? l.first : r.first;
      r.second = l.second > r.second || l.second != l.second ? l.second : r.second;
    }
    return r;
  }
  void lanes(const State& s, Pair* out, int64_t n) const {
    float low[16], high[16];
    (s.low + s.poison).store(low);
    (s.high + s.poison).store(high);
    for (int64_t i = 0; i < n; ++i) out[i] = {low[i], high[i]};
  }
};

// fake_quantize and minmax at once.
template <class T>
struct Observed {
  MinMax<T> seen;
  T* y;
  using State = typename MinMax<T>::State;
  State start() const { return seen.start(); }
  void step(State& s, const VecParams& p, int64_t i) const {
    const Vec v = Vec::load(seen.x + i);
    seen.add(s, v);
    formula::fake_quantize(v, p).store(y + i);
  }
  void step_some(State& s, const VecParams& p, int64_t i, int64_t n) const {
    const Vec v = seen.some(i, n);
    seen.add(s, v);
    store_some(y + i, formula::fake_quantize(v, p), n);
  }
  Pair combine(const State& s) const { return seen.combine(s); }
  void lanes(const State& s, Pair* out, int64_t n) const { seen.lanes(s, out, n); }
};

template <class T>
void learned_backward(const Problem& p, const Reduction& r, const void* grad, const void* x, void* grad_x,
                      Pair* partials, int64_t begin, int64_t end) {
  reduce(
      r, LearnedBackward<T>{static_cast<const T*>(grad), static_cast<const T*>(x), static_cast<T*>(grad_x)},
      [&](int64_t i, int64_t channel) { return channel < 0 ? gather(p, i) : broadcast(p, channel); }, partials, begin,
      end);
}

template <class T>
void minmax(const Reduction& r, const void* x, Pair* partials, int64_t begin, int64_t end) {
  reduce(r, MinMax<T>{static_cast<const T*>(x)}, [](int64_t, int64_t) { return 0; }, partials, begin, end);
}

template <class T>
void observed(const Problem& p, const Reduction& r, const void* x, void* y, Pair* partials, int64_t begin,
              int64_t end) {
  reduce(
      r, Observed<T>{{static_cast<const T*>(x)}, static_cast<T*>(y)},
      [&](int64_t i, int64_t channel) { return channel < 0 ? gather(p, i) : broadcast(p, channel); }, partials, begin,
      end);
}

}  // namespace
}  // namespace sparseq::affine

#include "histogram_kernel.h"

namespace sparseq::affine {
namespace {

constexpr Kernels make_kernels(Isa isa) {
  return {isa,
          {quantize<float>, quantize<Half>, quantize<BFloat16>},
          {dequantize<int8_t, float>, dequantize<int8_t, Half>, dequantize<int8_t, BFloat16>},
          {dequantize<uint8_t, float>, dequantize<uint8_t, Half>, dequantize<uint8_t, BFloat16>},
          {fake_quantize<float>, fake_quantize<Half>, fake_quantize<BFloat16>},
          {backward<float>, backward<Half>, backward<BFloat16>},
          {learned_backward<float>, learned_backward<Half>, learned_backward<BFloat16>},
          {minmax<float>, minmax<Half>, minmax<BFloat16>},
          {observed<float>, observed<Half>, observed<BFloat16>},
          {histogram<float>, histogram<Half>, histogram<BFloat16>}};
}

}  // namespace
}  // namespace sparseq::affine
