// INT8 linear and convolution on the CPU: what core/epilogue.h says, on an exact int32 sum.
#include <cstring>

#include "prepare.h"
#include "tiles_for.h"

namespace sparseq::gemm {
namespace {

// Tiles know signed weights relative to zero; the rest takes the general path.
bool tiled(const Arguments& a) { return a.weight.is_signed && !a.weight_zero.data && a.weight.depth > 0; }

// The shape of y is [..., N], or [batch, N, rows, columns] of an image, which is channels_last, as both paths
// write it and the next layer reads it.
Tensor product(const char* op, const Arguments& a, const std::optional<Tensor>& tiles, const Window& w, const Tensor& x,
               const Pixels& pixels, const std::vector<int64_t>& shape, bool image,
               const std::optional<Tensor>& residual) {
  const Tensor y = fresh(shape, a.dtype, size_t(size_of(a.y_type)), image);
  Tensor added;
  if (residual) {
    STD_TORCH_CHECK(residual->dim() == y.dim() && std::equal(shape.begin(), shape.end(), residual->sizes().begin()), op,
                    ": residual must have the shape of y, ", shape_of(y), ", got ", shape_of(*residual));
    added = laid_out_as(*residual, y);
  }
  if (y.numel() == 0) return y;
  const Prepared prepared(a, x, pixels, w.padding[0] > 0 || w.padding[1] > 0);
  Epilogue e = prepared.epilogue;
  e.bias = a.bias.data;
  e.activation = a.activation;
  if (residual) {
    e.residual_type = a.residual_type;
    e.residual = added.const_data_ptr();
    e.residual_stride = a.weight.rows;
    e.residual_scale = a.residual_scale.first_or(1.0f);
    e.residual_zero_point = a.residual_zero.first_or(0);
  }
  e.output_type = a.y_type;
  e.output = y.mutable_data_ptr();
  e.output_stride = a.weight.rows;
  e.output_scale = a.y_scale.first_or(1.0f);
  e.output_zero_point = a.y_zero.first_or(0);
  e.output_low = a.y_limits.low;
  e.output_high = a.y_limits.high;
  if (tiled(a))
    tiled_product(a, tiles, w, prepared.input, e);
  else
    general_product(a, w, prepared.input, e);
  return y;
}

using Optional = std::optional<Tensor>;

Tensor int8_linear_cpu(const Tensor& x, const Tensor& weight, const Tensor& scale, Optional x_zero,
                       Optional weight_zero, Optional bias, Optional tiles, Optional x_scale, int64_t x_min,
                       int64_t x_max, std::string activation, Optional residual, Optional residual_scale,
                       Optional residual_zero, std::optional<ScalarType> dtype, Optional y_scale, Optional y_zero,
                       int64_t y_min, int64_t y_max) {
  const char* op = "int8_linear";
  check_types(op, x, weight);
  STD_TORCH_CHECK(weight.dim() == 2 && x.dim() >= 1 && x.size(x.dim() - 1) == weight.size(1), op,
                  ": x must be [..., K] and weight [N, K], got ", shape_of(x), " and ", shape_of(weight));
  const Options options{x_scale,       x_min, x_max,   activation, residual, residual_scale,
                        residual_zero, dtype, y_scale, y_zero,     y_min,    y_max};
  const Arguments a(op, x, weight, scale, x_zero, weight_zero, bias, options);
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  const int64_t last = x.dim() - 1, depth = weight.size(1);
  int64_t rows = 1;
  for (int64_t d = 0; d < last; ++d) rows *= shape[size_t(d)];
  shape.back() = a.weight.rows;
  Window w{};
  w.batch = rows, w.channels = depth, w.height = w.width = w.rows = w.columns = 1;
  w.kernel_h = w.kernel_w = w.groups = 1;
  for (int d = 0; d < 2; ++d) w.stride[d] = w.dilation[d] = 1;
  // Up to three leading dimensions of any strides are read where they lie.
  const bool in_place = last <= 3 && (!a.dynamic || x.stride(last) == 1 || depth == 1);
  const Tensor source = in_place ? x : made_contiguous(x);
  Pixels p{1, 1, 1, depth, 0, 0, 0, in_place ? x.stride(last) : 1};
  if (!in_place) {
    p.width = rows, p.step = depth;
  } else {
    if (last > 0) p.width = x.size(last - 1), p.step = x.stride(last - 1);
    if (last > 1) p.height = x.size(last - 2), p.line = x.stride(last - 2);
    if (last > 2) p.batch = x.size(last - 3), p.image = x.stride(last - 3);
  }
  return product(op, a, tiles, w, source, p, shape, false, residual);
}

Tensor int8_conv2d_cpu(const Tensor& x, const Tensor& weight, const Tensor& scale, Optional x_zero,
                       Optional weight_zero, Optional bias, std::vector<int64_t> stride, std::vector<int64_t> padding,
                       std::vector<int64_t> dilation, int64_t groups, Optional tiles, Optional x_scale, int64_t x_min,
                       int64_t x_max, std::string activation, Optional residual, Optional residual_scale,
                       Optional residual_zero, std::optional<ScalarType> dtype, Optional y_scale, Optional y_zero,
                       int64_t y_min, int64_t y_max) {
  const char* op = "int8_conv2d";
  constexpr int64_t most = int64_t{1} << 31;  // keeps every coordinate far inside of int64
  check_types(op, x, weight);
  STD_TORCH_CHECK(x.dim() == 4 && weight.dim() == 4 && groups >= 1 && weight.size(0) % groups == 0 &&
                      x.size(1) % groups == 0 && x.size(1) / groups == weight.size(1),
                  op,
                  ": x must be [N, C, H, W] and weight [O, C / groups, kH, kW] with O a multiple of groups = ", groups,
                  ", got ", shape_of(x), " and ", shape_of(weight));
  STD_TORCH_CHECK(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2, op,
                  ": stride, padding and dilation must have two values each");
  const Options options{x_scale,       x_min, x_max,   activation, residual, residual_scale,
                        residual_zero, dtype, y_scale, y_zero,     y_min,    y_max};
  const Arguments a(op, x, weight, scale, x_zero, weight_zero, bias, options);
  STD_TORCH_CHECK(!a.dynamic, op, ": x_scale must be given for x of ", dtype_name(x.scalar_type()), ", got none");
  Window w{};
  w.batch = x.size(0), w.channels = weight.size(1), w.height = x.size(2), w.width = x.size(3);
  w.kernel_h = weight.size(2), w.kernel_w = weight.size(3), w.groups = groups;
  for (size_t d = 0; d < 2; ++d) {
    STD_TORCH_CHECK(stride[d] >= 1 && padding[d] >= 0 && dilation[d] >= 1 && stride[d] <= most && padding[d] <= most &&
                        dilation[d] <= most,
                    op, ": stride and dilation must be at least 1, padding at least 0, all at most 2^31");
    w.stride[d] = stride[d], w.padding[d] = padding[d], w.dilation[d] = dilation[d];
  }
  const int64_t free_h = w.height + 2 * padding[0] - dilation[0] * (w.kernel_h - 1) - 1;
  const int64_t free_w = w.width + 2 * padding[1] - dilation[1] * (w.kernel_w - 1) - 1;
  STD_TORCH_CHECK(free_h >= 0 && free_w >= 0, op, ": x must be at least as large as the kernel, got ", shape_of(x),
                  " for weight ", shape_of(weight));
  w.rows = free_h / stride[0] + 1;
  w.columns = free_w / stride[1] + 1;
  const Pixels p{w.batch, w.height, w.width, w.channels * groups, x.stride(0), x.stride(2), x.stride(3), x.stride(1)};
  return product(op, a, tiles, w, x, p, {w.batch, a.weight.rows, w.rows, w.columns}, true, residual);
}

Tensor int8_tiles_cpu(const Tensor& weight, int64_t groups, std::string kind) {
  STD_TORCH_CHECK(kind == "auto" || kind == "dense" || kind == "2:4",
                  "int8_tiles: kind must be auto, dense or 2:4, got ", kind);
  std::optional<TileKind> wanted;
  if (kind != "auto") wanted = kind == "dense" ? TileKind::dense : TileKind::sparse24;
  STD_TORCH_CHECK(
      weight.scalar_type() == ScalarType::Char && (weight.dim() == 2 || weight.dim() == 4) && weight.numel() > 0 &&
          groups >= 1 && weight.size(0) % groups == 0,
      "int8_tiles: weight must be int8 [N, K] or [O, I, kH, kW], not empty, with rows a multiple of groups = ", groups,
      ", got ", dtype_name(weight.scalar_type()), " ", shape_of(weight));
  const Tensor dense = made_contiguous(weight);
  const int64_t taps = weight.dim() == 4 ? weight.size(2) * weight.size(3) : 1;
  const WeightShape shape{groups, weight.size(0) / groups, taps, weight.size(1)};
  const AlignedBytes bytes = make_tiles(
      channels_inside(static_cast<const int8_t*>(dense.const_data_ptr()), shape).data(), shape, active_isa(), wanted);
  Tensor tiles = torch::stable::empty({int64_t(bytes.size())}, ScalarType::Byte);
  std::memcpy(tiles.mutable_data_ptr(), bytes.data(), bytes.size());
  return tiles;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseq, CPU, m) {
  m.impl("int8_linear", TORCH_BOX(&int8_linear_cpu));
  m.impl("int8_conv2d", TORCH_BOX(&int8_conv2d_cpu));
  m.impl("int8_tiles", TORCH_BOX(&int8_tiles_cpu));
}

}  // namespace sparseq::gemm
