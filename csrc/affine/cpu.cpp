// The affine ops on the CPU: torch tensors in, one pass over memory on torch's threads.
#include <limits>

#include "operands.h"

namespace sparseq::affine {
namespace {

using Axis = std::optional<int64_t>;

constexpr int64_t kGrain = 32768;  // elements: about 10 us of work, well over a thread's wake-up

const Kernels& active() { return kernels(active_isa()); }

template <class F>
void over_elements(int64_t numel, F f) {
  torch::stable::parallel_for(0, numel, kGrain, f);
}

// Tasks of a reduction hold up to kSegment elements; small ones go to a thread in bundles.
template <class F>
void over_tasks(const Reduction& r, F f) {
  const int64_t numel = r.layout.numel();
  const int64_t each = r.tasks ? std::max<int64_t>(1, numel / r.tasks) : 1;
  torch::stable::parallel_for(0, r.tasks, std::max<int64_t>(1, kGrain / each), f);
}

Tensor quantize_cpu(const Tensor& x, const Tensor& scale, std::optional<Tensor> zero_point, int64_t quant_min,
                    int64_t quant_max, Axis axis, Axis group_size) {
  check_range("quantize", quant_min, quant_max);
  const DType type = float_dtype("quantize", "x", x.scalar_type());
  const Operands o = operands("quantize", x, scale, zero_point, quant_min, quant_max, axis, group_size);
  Tensor q = fresh_like(o.arranged.x, quantized_dtype(quant_min), 1);
  const void* from = o.arranged.x.const_data_ptr();
  auto* to = static_cast<uint8_t*>(q.mutable_data_ptr());
  const auto kernel = active().quantize[int(type)];
  over_elements(x.numel(), [&](int64_t b, int64_t e) { kernel(o.problem, from, to, b, e); });
  return q;
}

Tensor dequantize_cpu(const Tensor& q, const Tensor& scale, std::optional<Tensor> zero_point, Axis axis,
                      Axis group_size, ScalarType dtype) {
  const DType type = float_dtype("dequantize", "dtype", dtype);
  const bool is_signed = q.scalar_type() == ScalarType::Char;
  STD_TORCH_CHECK(is_signed || q.scalar_type() == ScalarType::Byte, "dequantize: q must be int8 or uint8, got ",
                  dtype_name(q.scalar_type()));
  // the zero point is only rounded here: what clamps is quantize
  const double any = std::numeric_limits<float>::infinity();
  const Operands o = operands("dequantize", q, scale, zero_point, -any, any, axis, group_size);
  Tensor y = fresh_like(o.arranged.x, dtype, type == DType::float32 ? 4 : 2);
  const void* from = o.arranged.x.const_data_ptr();
  void* to = y.mutable_data_ptr();
  over_elements(q.numel(), [&](int64_t b, int64_t e) {
    if (is_signed)
      active().dequantize_s8[int(type)](o.problem, static_cast<const int8_t*>(from), to, b, e);
    else
      active().dequantize_u8[int(type)](o.problem, static_cast<const uint8_t*>(from), to, b, e);
  });
  return y;
}

Tensor fake_quantize_cpu(const Tensor& x, const Tensor& scale, std::optional<Tensor> zero_point, int64_t quant_min,
                         int64_t quant_max, Axis axis, Axis group_size, [[maybe_unused]] double grad_factor) {
  check_range("fake_quantize", quant_min, quant_max);
  const DType type = float_dtype("fake_quantize", "x", x.scalar_type());
  const Operands o = operands("fake_quantize", x, scale, zero_point, quant_min, quant_max, axis, group_size);
  Tensor y = fresh_like(o.arranged.x, x.scalar_type(), x.element_size());
  const void* from = o.arranged.x.const_data_ptr();
  void* to = y.mutable_data_ptr();
  const auto kernel = active().fake_quantize[int(type)];
  over_elements(x.numel(), [&](int64_t b, int64_t e) { kernel(o.problem, from, to, b, e); });
  return y;
}

Tensor backward_cpu(const Tensor& grad, const Tensor& x, const Tensor& scale, std::optional<Tensor> zero_point,
                    int64_t quant_min, int64_t quant_max, Axis axis, Axis group_size) {
  const char* op = "fake_quantize_backward";
  check_range(op, quant_min, quant_max);
  const DType type = float_dtype(op, "x", x.scalar_type());
  const Operands o = operands(op, x, scale, zero_point, quant_min, quant_max, axis, group_size);
  const Tensor g = matching_grad(op, grad, o.arranged.x);
  Tensor grad_x = fresh_like(o.arranged.x, x.scalar_type(), x.element_size());
  const void *from_grad = g.const_data_ptr(), *from = o.arranged.x.const_data_ptr();
  void* to = grad_x.mutable_data_ptr();
  const auto kernel = active().backward[int(type)];
  over_elements(x.numel(), [&](int64_t b, int64_t e) { kernel(o.problem, from_grad, from, to, b, e); });
  return grad_x;
}

Tensor partials_for(const Reduction& r) {
  return torch::stable::empty({2 * std::max<int64_t>(r.slots, 1)}, ScalarType::Float);
}

std::tuple<Tensor, Tensor, Tensor> learned_backward_cpu(const Tensor& grad, const Tensor& x, const Tensor& scale,
                                                        std::optional<Tensor> zero_point, int64_t quant_min,
                                                        int64_t quant_max, Axis axis, Axis group_size,
                                                        double grad_factor) {
  const char* op = "fake_quantize_learned_backward";
  check_range(op, quant_min, quant_max);
  const DType type = float_dtype(op, "x", x.scalar_type());
  const Operands o = operands(op, x, scale, zero_point, quant_min, quant_max, axis, group_size);
  const Tensor g = matching_grad(op, grad, o.arranged.x);
  Tensor grad_x = fresh_like(o.arranged.x, x.scalar_type(), x.element_size());
  Tensor grad_scale = torch::stable::empty(scale.sizes(), ScalarType::Float);
  Tensor grad_zero = torch::stable::empty(scale.sizes(), ScalarType::Float);
  const Reduction r(o.arranged.layout);
  Tensor partials = partials_for(r);
  auto* pairs = static_cast<Pair*>(partials.mutable_data_ptr());
  const void *from_grad = g.const_data_ptr(), *from = o.arranged.x.const_data_ptr();
  void* to = grad_x.mutable_data_ptr();
  const auto kernel = active().learned_backward[int(type)];
  over_tasks(r, [&](int64_t b, int64_t e) { kernel(o.problem, r, from_grad, from, to, pairs, b, e); });
  auto* to_scale = static_cast<float*>(grad_scale.mutable_data_ptr());
  auto* to_zero = static_cast<float*>(grad_zero.mutable_data_ptr());
  const int64_t slots_each = r.layout.channels ? std::max<int64_t>(1, r.slots / r.layout.channels) : 1;
  torch::stable::parallel_for(0, scale.numel(), std::max<int64_t>(1, kGrain / slots_each), [&](int64_t b, int64_t e) {
    for (int64_t c = b; c < e; ++c) {
      double scale_sum = 0, outside_sum = 0;
      if (r.slots)
        r.for_each_slot(c, [&](int64_t slot) {
          scale_sum += pairs[slot].first;
          outside_sum += pairs[slot].second;
        });
      to_scale[c] = float(scale_sum * grad_factor);
      to_zero[c] = float(-outside_sum * o.problem.scale[c] * grad_factor);
    }
  });
  return {grad_x, grad_scale, grad_zero};
}

// Least and greatest value of each channel.
struct Range {
  Range(const Tensor& x, const Layout& layout, Axis axis, Axis group_size)
      : low(torch::stable::empty(channel_shape(x, layout, axis, group_size), ScalarType::Float)),
        high(torch::stable::empty(channel_shape(x, layout, axis, group_size), ScalarType::Float)) {}

  void combine(const Reduction& r, const Pair* pairs) {
    auto* to_low = static_cast<float*>(low.mutable_data_ptr());
    auto* to_high = static_cast<float*>(high.mutable_data_ptr());
    torch::stable::parallel_for(0, r.layout.channels, 1024, [&](int64_t b, int64_t e) {
      for (int64_t c = b; c < e; ++c) {
        float least = std::numeric_limits<float>::infinity(), most = -least;
        r.for_each_slot(c, [&](int64_t slot) {
          const Pair p = pairs[slot];
          least = p.first < least || p.first != p.first ? p.first : least;
          most = p.second > most || p.second != p.second ? p.second : most;
        });
        to_low[c] = least;
        to_high[c] = most;
      }
    });
  }

  Tensor low, high;
};

std::tuple<Tensor, Tensor> minmax_cpu(const Tensor& x, Axis axis, Axis group_size) {
  const DType type = float_dtype("minmax", "x", x.scalar_type());
  check_not_empty("minmax", x);
  const Arranged a = arrange("minmax", x, axis, group_size);
  Range range(x, a.layout, axis, group_size);
  const Reduction r(a.layout);
  Tensor partials = partials_for(r);
  auto* pairs = static_cast<Pair*>(partials.mutable_data_ptr());
  const void* from = a.x.const_data_ptr();
  const auto kernel = active().minmax[int(type)];
  over_tasks(r, [&](int64_t b, int64_t e) { kernel(r, from, pairs, b, e); });
  range.combine(r, pairs);
  return {range.low, range.high};
}

std::tuple<Tensor, Tensor, Tensor> observed_cpu(const Tensor& x, const Tensor& scale, std::optional<Tensor> zero_point,
                                                int64_t quant_min, int64_t quant_max, Axis axis, Axis group_size,
                                                [[maybe_unused]] double grad_factor) {
  const char* op = "fake_quantize_observed";
  check_range(op, quant_min, quant_max);
  const DType type = float_dtype(op, "x", x.scalar_type());
  check_not_empty(op, x);
  const Operands o = operands(op, x, scale, zero_point, quant_min, quant_max, axis, group_size);
  Tensor y = fresh_like(o.arranged.x, x.scalar_type(), x.element_size());
  Range range(x, o.arranged.layout, axis, group_size);
  const Reduction r(o.arranged.layout);
  Tensor partials = partials_for(r);
  auto* pairs = static_cast<Pair*>(partials.mutable_data_ptr());
  const void* from = o.arranged.x.const_data_ptr();
  void* to = y.mutable_data_ptr();
  const auto kernel = active().observed[int(type)];
  over_tasks(r, [&](int64_t b, int64_t e) { kernel(o.problem, r, from, to, pairs, b, e); });
  range.combine(r, pairs);
  return {y, range.low, range.high};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseq, CPU, m) {
  m.impl("quantize", TORCH_BOX(&quantize_cpu));
  m.impl("dequantize", TORCH_BOX(&dequantize_cpu));
  m.impl("fake_quantize", TORCH_BOX(&fake_quantize_cpu));
  m.impl("fake_quantize_backward", TORCH_BOX(&backward_cpu));
  m.impl("fake_quantize_learned_backward", TORCH_BOX(&learned_backward_cpu));
  m.impl("minmax", TORCH_BOX(&minmax_cpu));
  m.impl("fake_quantize_observed", TORCH_BOX(&observed_cpu));
}

}  // namespace sparseq::affine
