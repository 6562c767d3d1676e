// INT8 linear and convolution on the CPU, float32 out: y = acc * scale + bias, exact in int32.
#include <cstring>

#include "arguments.h"
#include "tiles.h"

namespace sparseq::gemm {
namespace {

// Tiles know signed weights relative to zero; the rest takes the general path.
bool tiled(const Arguments& a) { return a.weight.is_signed && !a.weight_zero.data && a.weight.depth > 0; }

Tensor int8_linear_cpu(const Tensor& x, const Tensor& weight, const Tensor& scale, std::optional<Tensor> x_zero,
                       std::optional<Tensor> weight_zero, std::optional<Tensor> bias, std::optional<Tensor> tiles) {
  const char* op = "int8_linear";
  check_bytes(op, "x", x);
  check_bytes(op, "weight", weight);
  STD_TORCH_CHECK(weight.dim() == 2 && x.dim() >= 1 && x.size(x.dim() - 1) == weight.size(1), op,
                  ": x must be [..., K] and weight [N, K], got ", shape_of(x), " and ", shape_of(weight));
  const Arguments a(op, x, weight, scale, x_zero, weight_zero, bias);
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = a.weight.rows;
  int64_t rows = 1;
  for (size_t d = 0; d + 1 < shape.size(); ++d) rows *= shape[d];
  const Tensor dense = torch::stable::contiguous(x);
  Tensor y = torch::stable::empty(shape, ScalarType::Float);
  float* out = static_cast<float*>(y.mutable_data_ptr());
  if (rows == 0 || a.weight.rows == 0) return y;
  if (tiled(a))
    tiled_linear(a, tiles, dense, rows, out);
  else
    general_linear(a, dense, rows, out);
  return y;
}

Tensor int8_conv2d_cpu(const Tensor& x, const Tensor& weight, const Tensor& scale, std::optional<Tensor> x_zero,
                       std::optional<Tensor> weight_zero, std::optional<Tensor> bias, std::vector<int64_t> stride,
                       std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups,
                       std::optional<Tensor> tiles) {
  const char* op = "int8_conv2d";
  check_bytes(op, "x", x);
  check_bytes(op, "weight", weight);
  STD_TORCH_CHECK(x.dim() == 4 && weight.dim() == 4 && groups >= 1 && x.size(1) == weight.size(1) * groups &&
                      weight.size(0) % groups == 0,
                  op,
                  ": x must be [N, C, H, W] and weight [O, C / groups, kH, kW] with O a multiple of groups = ", groups,
                  ", got ", shape_of(x), " and ", shape_of(weight));
  STD_TORCH_CHECK(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2, op,
                  ": stride, padding and dilation must have two values each");
  const Arguments a(op, x, weight, scale, x_zero, weight_zero, bias);
  Window w{};
  w.batch = x.size(0), w.channels = weight.size(1), w.height = x.size(2), w.width = x.size(3);
  w.kernel_h = weight.size(2), w.kernel_w = weight.size(3), w.groups = groups;
  for (int d = 0; d < 2; ++d) {
    STD_TORCH_CHECK(stride[d] >= 1 && padding[d] >= 0 && dilation[d] >= 1, op,
                    ": stride and dilation must be at least 1, padding at least 0");
    w.stride[d] = stride[d], w.padding[d] = padding[d], w.dilation[d] = dilation[d];
  }
  const int64_t free_h = w.height + 2 * padding[0] - dilation[0] * (w.kernel_h - 1) - 1;
  const int64_t free_w = w.width + 2 * padding[1] - dilation[1] * (w.kernel_w - 1) - 1;
  STD_TORCH_CHECK(free_h >= 0 && free_w >= 0, op, ": x must be at least as large as the kernel, got ", shape_of(x),
                  " for weight ", shape_of(weight));
  w.rows = free_h / stride[0] + 1;
  w.columns = free_w / stride[1] + 1;
  // channels_last, as both paths write it and the next layer reads it
  Tensor y = torch::stable::empty({w.batch, a.weight.rows, w.rows, w.columns}, ScalarType::Float, std::nullopt,
                                  std::nullopt, std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
  float* out = static_cast<float*>(y.mutable_data_ptr());
  if (y.numel() == 0) return y;
  if (tiled(a))
    tiled_conv2d(a, tiles, w, x, out);
  else
    general_conv2d(a, w, x, out);
  return y;
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
  const Tensor dense = torch::stable::contiguous(weight);
  const int64_t taps = weight.dim() == 4 ? weight.size(2) * weight.size(3) : 1;
  const WeightShape shape{groups, weight.size(0) / groups, taps, weight.size(1)};
  const AlignedBytes bytes = make_tiles(channels_inside(dense).data(), shape, active_isa(), wanted);
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
