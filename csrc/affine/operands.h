// From the tensors of an affine op to its Problem: checks, memory order, layout. Shared by CPU and CUDA.
#pragma once

#include "../core/tensors.h"
#include "affine.h"

namespace sparseq::affine {

inline DType float_dtype(const char* op, const char* argument, ScalarType type) {
  switch (type) {
    case ScalarType::Float: return DType::float32;
    case ScalarType::Half: return DType::float16;
    case ScalarType::BFloat16: return DType::bfloat16;
    default:
      STD_TORCH_CHECK(false, op, ": ", argument, " must be float32, float16 or bfloat16, got ", dtype_name(type));
  }
  return DType::float32;
}

inline void check_not_empty(const char* op, const Tensor& x) {
  STD_TORCH_CHECK(x.numel() > 0, op, ": x must have at least one element, got shape ", shape_of(x));
}

// x made dense, and how its memory is cut into channels.
struct Arranged {
  Tensor x;
  Layout layout;
};

// Elementwise ops run in memory order: in a dense tensor the stride of an axis is the number of
// elements below it, so channels_last needs no copy. Groups are defined in row-major order.
inline Arranged arrange(const char* op, const Tensor& input, std::optional<int64_t> axis,
                        std::optional<int64_t> group_size) {
  if (group_size) {
    const int64_t numel = input.numel(), dim = input.dim();
    const int64_t group = *group_size;
    STD_TORCH_CHECK(group >= 1, op, ": group_size must be at least 1, got ", group);
    const int64_t last = dim ? dim - 1 : 0, wanted = axis.value_or(last);
    const int64_t a = wanted < 0 ? wanted + dim : wanted;
    STD_TORCH_CHECK(a == 0 || a == last, op, ": axis must be 0 or the last one with group_size, got ", wanted);
    const int64_t rows = a == last ? (numel && dim ? numel / input.size(last) : 0) : input.size(0);
    const int64_t length = rows ? numel / rows : 0;
    STD_TORCH_CHECK(length % group == 0, op, ": x must have a multiple of group_size = ", group,
                    " elements to group, got ", length, " (shape ", shape_of(input), ")");
    return {torch::stable::contiguous(input), {1, numel / group, group}};
  }
  const Tensor dense = is_dense(input) ? input : laid_out_as(input, empty_like(input, input.scalar_type()));
  if (!axis) return {dense, {1, 1, input.numel()}};
  const int64_t dim = input.dim();
  const int64_t a = *axis < 0 ? *axis + dim : *axis;
  STD_TORCH_CHECK(a >= 0 && a < dim, op, ": axis must be in [", -dim, ", ", dim - 1, "], got ", *axis);
  const int64_t channels = input.size(a), numel = input.numel();
  if (numel == 0 || channels == 1) return {dense, {1, std::max<int64_t>(channels, 1), numel}};
  const int64_t inner = dense.stride(a);
  return {dense, {numel / (channels * inner), channels, inner}};
}

struct Operands {
  Arranged arranged;
  Tensor scale;                      // kept alive for Problem
  std::optional<Tensor> zero_point;  // likewise
  Problem problem;
};

inline Operands operands(const char* op, const Tensor& x, const Tensor& scale, const std::optional<Tensor>& zero_point,
                         double quant_min, double quant_max, std::optional<int64_t> axis,
                         std::optional<int64_t> group_size) {
  Operands o{arrange(op, x, axis, group_size), torch::stable::contiguous(scale), std::nullopt, {}};
  const int64_t channels = o.arranged.layout.channels;
  STD_TORCH_CHECK(scale.scalar_type() == ScalarType::Float, op, ": scale must be float32, got ",
                  dtype_name(scale.scalar_type()));
  STD_TORCH_CHECK(scale.device() == x.device(), op, ": scale must be on x's device");
  STD_TORCH_CHECK(scale.numel() == channels || x.numel() == 0, op, ": scale must have ", channels,
                  " elements for x of shape ", shape_of(x), ", got ", scale.numel());
  o.problem = {o.arranged.layout, o.scale.const_data_ptr<float>(), nullptr, ZeroPointKind::none, float(quant_min),
               float(quant_max)};
  if (zero_point) {
    const ScalarType type = zero_point->scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Int || type == ScalarType::Float, op,
                    ": zero_point must be int32 or float32, got ", dtype_name(type));
    STD_TORCH_CHECK(zero_point->device() == x.device(), op, ": zero_point must be on x's device");
    STD_TORCH_CHECK(zero_point->numel() == scale.numel(), op, ": zero_point must have as many elements as scale (",
                    scale.numel(), "), got ", zero_point->numel());
    o.zero_point = torch::stable::contiguous(*zero_point);
    o.problem.zero_point = o.zero_point->const_data_ptr();
    o.problem.zero_point_kind = type == ScalarType::Int ? ZeroPointKind::int32 : ZeroPointKind::float32;
  }
  return o;
}

inline void check_range(const char* op, int64_t quant_min, int64_t quant_max) {
  STD_TORCH_CHECK(quant_min < quant_max && quant_min >= -128 && quant_max <= (quant_min < 0 ? 127 : 255), op,
                  ": quant_min and quant_max must lie in [-128, 127] or [0, 255] with quant_min < quant_max, got ",
                  quant_min, " and ", quant_max);
}

inline ScalarType quantized_dtype(int64_t quant_min) { return quant_min < 0 ? ScalarType::Char : ScalarType::Byte; }

// The shape of what there is one of per tensor, channel or group.
inline std::vector<int64_t> channel_shape(const Tensor& x, const Layout& layout, std::optional<int64_t> axis,
                                          std::optional<int64_t> group_size) {
  if (!group_size) return axis ? std::vector<int64_t>{layout.channels} : std::vector<int64_t>{};
  if (axis && (*axis == 0 || *axis == -x.dim()) && x.dim() > 1)
    return {x.size(0), x.numel() / (x.size(0) * *group_size)};
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  if (!shape.empty()) shape.back() /= *group_size;
  return shape;
}

// The gradient in x's dtype and memory order.
inline Tensor matching_grad(const char* op, const Tensor& grad, const Tensor& x) {
  STD_TORCH_CHECK(grad.scalar_type() == x.scalar_type(), op, ": grad must have x's dtype ", dtype_name(x.scalar_type()),
                  ", got ", dtype_name(grad.scalar_type()));
  bool same = grad.dim() == x.dim();
  for (int64_t d = 0; same && d < x.dim(); ++d) same = grad.size(d) == x.size(d);
  STD_TORCH_CHECK(same, op, ": grad must have x's shape ", shape_of(x), ", got ", shape_of(grad));
  return laid_out_as(grad, x);
}

}  // namespace sparseq::affine
