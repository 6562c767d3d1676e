// The tiled path of the INT8 products: signed weights, packed for this machine, dense or 2:4.
#include "arguments.h"
#include "tiles_for.h"

namespace sparseq::gemm {
namespace {

void multiply(const TiledWeight& weight, const Input& input, const Epilogue& epilogue, int64_t rows) {
  const Kernels& kernel = kernels(active_isa());
  const int threads = int(torch::stable::get_num_threads());
  const WorkPlan plan = plan_work(weight.tiles, input.conv, rows, cache_sizes(), threads);
  const WeightShape& s = weight.tiles.shape;
  const int64_t products = rows * s.groups * s.out_channels * s.taps * s.in_channels / std::max<int64_t>(1, plan.items);
  torch::stable::parallel_for(0, plan.items, grain(products / 8),
                              [&](int64_t b, int64_t e) { kernel.run(weight.tiles, input, epilogue, plan, b, e); });
}

}  // namespace

void tiled_product(const Arguments& a, const std::optional<Tensor>& tiles, const Window& w, const Input& prepared,
                   const Epilogue& epilogue) {
  STD_TORCH_CHECK(!tiles || (tiles->scalar_type() == ScalarType::Byte && tiles->is_contiguous()),
                  "tiles must be a contiguous uint8 tensor");
  std::optional<std::span<const uint8_t>> given;
  if (tiles) given.emplace(static_cast<const uint8_t*>(tiles->const_data_ptr()), size_t(tiles->numel()));
  const TilesFor weight(static_cast<const int8_t*>(a.weight.dense.const_data_ptr()), given,
                        {w.groups, a.weight.rows / w.groups, w.kernel_h * w.kernel_w, w.channels}, active_isa());
  ConvShape shape;
  shape.batch = w.batch, shape.height = w.height, shape.width = w.width;
  shape.out_height = w.rows, shape.out_width = w.columns;
  shape.kernel_height = w.kernel_h, shape.kernel_width = w.kernel_w;
  shape.stride_height = w.stride[0], shape.stride_width = w.stride[1];
  shape.pad_top = w.padding[0], shape.pad_left = w.padding[1];
  shape.dilation_height = w.dilation[0], shape.dilation_width = w.dilation[1];
  Input input = prepared;
  if (!w.pointwise()) input.conv = &shape;
  if (weight->header->kind != TileKind::depthwise) return multiply(*weight, input, epilogue, w.pixels());
  const int64_t channels = w.channels * w.groups;
  const Depthwise depthwise{shape, channels, weight->pairs, weight->sums};
  const Kernels& kernel = kernels(active_isa());
  torch::stable::parallel_for(0, w.pixels(), grain(channels * a.weight.depth / 4),
                              [&](int64_t b, int64_t e) { kernel.depthwise(depthwise, input, epilogue, b, e); });
}

}  // namespace sparseq::gemm
