// The affine ops on CUDA: torch tensors in, kernels on torch's current stream. No kernel is written here.
#include <limits>
#include <tuple>

#include "../core/cuda.h"
#include "histogram.h"
#include "int4.h"
#include "launch.h"
#include "operands.h"

namespace sparseq::affine {
namespace {

using Axis = std::optional<int64_t>;

Tensor quantize_cuda(const Tensor& x, const Tensor& scale, std::optional<Tensor> zero_point, int64_t quant_min,
                     int64_t quant_max, Axis axis, Axis group_size) {
  check_range("quantize", quant_min, quant_max);
  const DType type = float_dtype("quantize", "x", x.scalar_type());
  const OnDevice device(x);
  const Operands o = operands("quantize", x, scale, zero_point, quant_min, quant_max, axis, group_size);
  Tensor q = empty_like(o.arranged.x, quantized_dtype(quant_min));
  cuda::quantize(type, o.problem, o.arranged.x.const_data_ptr(), static_cast<uint8_t*>(q.mutable_data_ptr()),
                 device.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return q;
}

Tensor dequantize_cuda(const Tensor& q, const Tensor& scale, std::optional<Tensor> zero_point, Axis axis,
                       Axis group_size, ScalarType dtype) {
  const DType type = float_dtype("dequantize", "dtype", dtype);
  const bool is_signed = q.scalar_type() == ScalarType::Char;
  STD_TORCH_CHECK(is_signed || q.scalar_type() == ScalarType::Byte, "dequantize: q must be int8 or uint8, got ",
                  dtype_name(q.scalar_type()));
  const OnDevice device(q);
  // the zero point is only rounded here: what clamps is quantize
  const double any = std::numeric_limits<float>::infinity();
  const Operands o = operands("dequantize", q, scale, zero_point, -any, any, axis, group_size);
  Tensor y = empty_like(o.arranged.x, dtype);
  cuda::dequantize(type, is_signed, o.problem, o.arranged.x.const_data_ptr(), y.mutable_data_ptr(), device.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return y;
}

Tensor fake_quantize_cuda(const Tensor& x, const Tensor& scale, std::optional<Tensor> zero_point, int64_t quant_min,
                          int64_t quant_max, Axis axis, Axis group_size, [[maybe_unused]] double grad_factor) {
  check_range("fake_quantize", quant_min, quant_max);
  const DType type = float_dtype("fake_quantize", "x", x.scalar_type());
  const OnDevice device(x);
  const Operands o = operands("fake_quantize", x, scale, zero_point, quant_min, quant_max, axis, group_size);
  Tensor y = empty_like(o.arranged.x, x.scalar_type());
  cuda::fake_quantize(type, o.problem, o.arranged.x.const_data_ptr(), y.mutable_data_ptr(), device.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return y;
}

// What torch's autograd may hand over is checked here too: a gradient on another device would be read as if
// it were on this one.
Tensor grad_on_device(const char* op, const Tensor& grad, const Tensor& x) {
  STD_TORCH_CHECK(grad.device() == x.device(), op, ": grad must be on x's device");
  return matching_grad(op, grad, x);
}

Tensor backward_cuda(const Tensor& grad, const Tensor& x, const Tensor& scale, std::optional<Tensor> zero_point,
                     int64_t quant_min, int64_t quant_max, Axis axis, Axis group_size) {
  const char* op = "fake_quantize_backward";
  check_range(op, quant_min, quant_max);
  const DType type = float_dtype(op, "x", x.scalar_type());
  const OnDevice device(x);
  const Operands o = operands(op, x, scale, zero_point, quant_min, quant_max, axis, group_size);
  const Tensor g = grad_on_device(op, grad, o.arranged.x);
  Tensor grad_x = empty_like(o.arranged.x, x.scalar_type());
  cuda::backward(type, o.problem, g.const_data_ptr(), o.arranged.x.const_data_ptr(), grad_x.mutable_data_ptr(),
                 device.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return grad_x;
}

// Scratch memory for a reduction. Freed when the op returns, while the kernels may still run: torch's
// allocator hands it out again only to work that is later on the same stream.
Tensor partials_for(const Tensor& x, const cuda::Cut& cut) {
  return empty_on(x, {2 * std::max<int64_t>(cut.slots, 1)}, ScalarType::Float);
}

std::tuple<Tensor, Tensor, Tensor> learned_backward_cuda(const Tensor& grad, const Tensor& x, const Tensor& scale,
                                                         std::optional<Tensor> zero_point, int64_t quant_min,
                                                         int64_t quant_max, Axis axis, Axis group_size,
                                                         double grad_factor) {
  const char* op = "fake_quantize_learned_backward";
  check_range(op, quant_min, quant_max);
  const DType type = float_dtype(op, "x", x.scalar_type());
  const OnDevice device(x);
  const Operands o = operands(op, x, scale, zero_point, quant_min, quant_max, axis, group_size);
  const Tensor g = grad_on_device(op, grad, o.arranged.x);
  Tensor grad_x = empty_like(o.arranged.x, x.scalar_type());
  const std::vector<int64_t> shape(scale.sizes().begin(), scale.sizes().end());
  Tensor grad_scale = empty_on(x, shape, ScalarType::Float), grad_zero = empty_on(x, shape, ScalarType::Float);
  const cuda::Cut cut(o.arranged.layout);
  Tensor partials = partials_for(x, cut);
  cuda::learned_backward(type, o.problem, cut, g.const_data_ptr(), o.arranged.x.const_data_ptr(),
                         grad_x.mutable_data_ptr(), grad_factor, static_cast<Pair*>(partials.mutable_data_ptr()),
                         scale.numel(), static_cast<float*>(grad_scale.mutable_data_ptr()),
                         static_cast<float*>(grad_zero.mutable_data_ptr()), device.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {grad_x, grad_scale, grad_zero};
}

std::tuple<Tensor, Tensor> minmax_cuda(const Tensor& x, Axis axis, Axis group_size) {
  const DType type = float_dtype("minmax", "x", x.scalar_type());
  check_not_empty("minmax", x);
  const OnDevice device(x);
  const Arranged a = arrange("minmax", x, axis, group_size);
  const std::vector<int64_t> shape = channel_shape(x, a.layout, axis, group_size);
  Tensor low = empty_on(x, shape, ScalarType::Float), high = empty_on(x, shape, ScalarType::Float);
  const cuda::Cut cut(a.layout);
  Tensor partials = partials_for(x, cut);
  cuda::minmax(type, cut, a.x.const_data_ptr(), static_cast<Pair*>(partials.mutable_data_ptr()),
               static_cast<float*>(low.mutable_data_ptr()), static_cast<float*>(high.mutable_data_ptr()),
               device.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {low, high};
}

std::tuple<Tensor, Tensor, Tensor> observed_cuda(const Tensor& x, const Tensor& scale, std::optional<Tensor> zero_point,
                                                 int64_t quant_min, int64_t quant_max, Axis axis, Axis group_size,
                                                 [[maybe_unused]] double grad_factor) {
  const char* op = "fake_quantize_observed";
  check_range(op, quant_min, quant_max);
  const DType type = float_dtype(op, "x", x.scalar_type());
  check_not_empty(op, x);
  const OnDevice device(x);
  const Operands o = operands(op, x, scale, zero_point, quant_min, quant_max, axis, group_size);
  Tensor y = empty_like(o.arranged.x, x.scalar_type());
  const std::vector<int64_t> shape = channel_shape(x, o.arranged.layout, axis, group_size);
  Tensor low = empty_on(x, shape, ScalarType::Float), high = empty_on(x, shape, ScalarType::Float);
  const cuda::Cut cut(o.arranged.layout);
  Tensor partials = partials_for(x, cut);
  cuda::observed(type, o.problem, cut, o.arranged.x.const_data_ptr(), y.mutable_data_ptr(),
                 static_cast<Pair*>(partials.mutable_data_ptr()), static_cast<float*>(low.mutable_data_ptr()),
                 static_cast<float*>(high.mutable_data_ptr()), device.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {y, low, high};
}

Tensor histogram_cuda(const Tensor& x, const Tensor& limit, int64_t bins, Axis axis, Axis group_size) {
  const DType type = float_dtype("histogram", "x", x.scalar_type());
  const OnDevice device(x);
  const Histogram h = histogram_of(x, limit, bins, axis, group_size);
  Tensor counts = empty_on(x, h.shape, ScalarType::Long);
  cuda::histogram(type, h.arranged.layout, h.arranged.x.const_data_ptr(),
                  static_cast<const float*>(h.limit.const_data_ptr()), bins, limit.numel(),
                  static_cast<int64_t*>(counts.mutable_data_ptr()), device.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return counts;
}

Tensor pack_int4_cuda(const Tensor& q) {
  const OnDevice device(q);
  const Int4 o = int4_to_pack(q);
  Tensor packed = empty_on(q, o.shape, ScalarType::Byte);
  cuda::pack_int4(static_cast<const uint8_t*>(o.dense.const_data_ptr()),
                  static_cast<uint8_t*>(packed.mutable_data_ptr()), o.rows, o.columns, device.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return packed;
}

Tensor unpack_int4_cuda(const Tensor& packed, int64_t columns, bool is_signed) {
  const OnDevice device(packed);
  const Int4 o = int4_to_unpack(packed, columns);
  Tensor q = empty_on(packed, o.shape, is_signed ? ScalarType::Char : ScalarType::Byte);
  cuda::unpack_int4(static_cast<const uint8_t*>(o.dense.const_data_ptr()), static_cast<uint8_t*>(q.mutable_data_ptr()),
                    o.rows, o.columns, is_signed, device.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return q;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseq, CUDA, m) {
  m.impl("quantize", TORCH_BOX(&quantize_cuda));
  m.impl("dequantize", TORCH_BOX(&dequantize_cuda));
  m.impl("fake_quantize", TORCH_BOX(&fake_quantize_cuda));
  m.impl("fake_quantize_backward", TORCH_BOX(&backward_cuda));
  m.impl("fake_quantize_learned_backward", TORCH_BOX(&learned_backward_cuda));
  m.impl("minmax", TORCH_BOX(&minmax_cuda));
  m.impl("fake_quantize_observed", TORCH_BOX(&observed_cuda));
  m.impl("histogram", TORCH_BOX(&histogram_cuda));
  m.impl("pack_int4", TORCH_BOX(&pack_int4_cuda));
  m.impl("unpack_int4", TORCH_BOX(&unpack_int4_cuda));
}

}  // namespace sparseq::affine
