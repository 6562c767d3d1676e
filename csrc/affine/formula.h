// The numbers contract of the affine ops, written once for every machine: V is sixteen lanes on a CPU
// and one float on a GPU. Needs Vec-like operators and round, floor, min, max, ordered, between, select, keep.
//
//   quantize        q  = clamp(rne(x / scale) + zero, quant_min, quant_max)      (NaN -> zero)
//   dequantize      y  = (q - zero) * scale
//   fake_quantize   y  = dequantize(quantize(x)), bit for bit
//
// All of these are relative to the zero point (low = quant_min - zero, high = quant_max - zero), where
// clamping happens before anything is added: huge x and inf saturate instead of wrapping.
#pragma once

#ifdef __CUDACC__
#define SPARSEQ_INLINE __device__ __forceinline__
#else
#define SPARSEQ_INLINE inline
#endif

namespace sparseq {
namespace {
namespace formula {

template <class V>
struct Params {
  V scale, zero, low, high;
};

// The steps from the zero point, rounded but not clamped; NaN stays NaN.
template <class V>
SPARSEQ_INLINE V steps(V x, const Params<V>& p) {
  return round(x / p.scale);
}

template <class V>
SPARSEQ_INLINE V clamp_steps(V v, const Params<V>& p) {
  // adding +0 turns -0 into +0, as an integer would
  return min(max(keep(ordered(v), v), p.low), p.high) + V(p.zero - p.zero);
}

template <class V>
SPARSEQ_INLINE V quantize(V x, const Params<V>& p) {
  return clamp_steps(steps(x, p), p) + p.zero;
}

template <class V>
SPARSEQ_INLINE V dequantize(V q, const Params<V>& p) {
  return (q - p.zero) * p.scale;
}

template <class V>
SPARSEQ_INLINE V fake_quantize(V x, const Params<V>& p) {
  return clamp_steps(steps(x, p), p) * p.scale;
}

// Straight-through estimator: the gradient passes where x falls inside the range. The mask is
// recomputed from x, nothing is saved by the forward pass.
template <class V>
SPARSEQ_INLINE V backward(V grad, V x, const Params<V>& p) {
  return keep(between(steps(x, p), p.low, p.high), grad);
}

// As backward, and the terms of the gradients of scale (LSQ, Esser et al. 2020, eq. 3) and zero point
// (LSQ+, Bhalgat et al. 2020, in units of the integer zero point):
//   d y / d scale = v - x/scale inside, clamp(v) outside;   d y / d zero = 0 inside, -scale outside
template <class V>
SPARSEQ_INLINE V learned_backward(V grad, V x, const Params<V>& p, V& scale_sum, V& outside_sum) {
  const V t = x / p.scale, v = round(t);
  const auto inside = between(v, p.low, p.high);
  const V passed = keep(inside, grad);
  scale_sum = scale_sum + grad * select(inside, v - t, clamp_steps(v, p));
  outside_sum = outside_sum + select(inside, p.zero - p.zero, grad);
  return passed;
}

// What a histogram's bins need beside a limit: half = bins / 2, the rest constants.
template <class V>
struct Bins {
  V half, zero, one, infinity;
};

// clamp(floor(x / limit * half) + half, 0, bins - 1) as a number, `bins` for NaN. The limit is a power of two, inverse
// = 1 / limit, so that products are exact as long as they are normal. Below that only the sign of x counts, and is
// looked at: a small negative x over a great limit may have become -0.
template <class V>
SPARSEQ_INLINE V bin(V x, V inverse, const Bins<V>& b) {
  const V t = x * inverse * b.half;
  const V most = select(between(x, b.zero, b.infinity), b.half, b.zero) - b.one;
  const V i = max(min(floor(t), most), b.zero - b.half) + b.half;
  return select(ordered(t), i, b.half + b.half);
}

}  // namespace formula
}  // namespace
}  // namespace sparseq
