// The tiled path of the INT8 products: signed weights, packed for this machine, dense or 2:4.
#include "arguments.h"
#include "tiles.h"

namespace sparseq::gemm {
namespace {

// Tiles at hand, where they are for the ISA in use, or made for this call.
class TilesFor {
 public:
  TilesFor(const Arguments& a, const std::optional<Tensor>& given, const WeightShape& shape) {
    if (given) {
      const auto* bytes = static_cast<const uint8_t*>(given->const_data_ptr());
      STD_TORCH_CHECK(given->scalar_type() == ScalarType::Byte && given->is_contiguous(),
                      "tiles must be a contiguous uint8 tensor");
      weight_ = view_tiles(bytes, given->numel(), shape);
      if (weight_.header->isa == active_isa()) return;
    }
    made_ = make_tiles(channels_inside(a.weight.dense).data(), shape, active_isa());
    weight_ = view_tiles(made_.data(), int64_t(made_.size()), shape);
  }
  const TiledWeight& operator*() const { return weight_; }

 private:
  AlignedBytes made_;
  TiledWeight weight_;
};

void multiply(const TiledWeight& weight, const Input& input, const Epilogue& epilogue, int64_t rows) {
  const Kernels& kernel = kernels(active_isa());
  const int threads = int(torch::stable::get_num_threads());
  const WorkPlan plan = plan_work(weight.tiles, rows, cache_sizes(), threads);
  const WeightShape& s = weight.tiles.shape;
  const int64_t products = rows * s.groups * s.out_channels * s.taps * s.in_channels / std::max<int64_t>(1, plan.items);
  torch::stable::parallel_for(0, plan.items, grain(products / 8),
                              [&](int64_t b, int64_t e) { kernel.run(weight.tiles, input, epilogue, plan, b, e); });
}

}  // namespace

std::vector<int8_t> channels_inside(const Tensor& weight) {
  const auto* from = static_cast<const int8_t*>(weight.const_data_ptr());
  std::vector<int8_t> to(size_t(weight.numel()));
  const int64_t outputs = weight.size(0), inputs = weight.dim() > 1 ? weight.size(1) : 1;
  const int64_t taps = outputs && inputs ? weight.numel() / (outputs * inputs) : 0;
  for (int64_t o = 0; o < outputs; ++o)
    for (int64_t i = 0; i < inputs; ++i)
      for (int64_t t = 0; t < taps; ++t) to[size_t((o * taps + t) * inputs + i)] = from[(o * inputs + i) * taps + t];
  return to;
}

void tiled_product(const Arguments& a, const std::optional<Tensor>& tiles, const Window& w, const Input& prepared,
                   const Epilogue& epilogue) {
  const TilesFor weight(a, tiles, {w.groups, a.weight.rows / w.groups, w.kernel_h * w.kernel_w, w.channels});
  ConvShape shape;
  shape.batch = w.batch, shape.height = w.height, shape.width = w.width;
  shape.out_height = w.rows, shape.out_width = w.columns;
  shape.kernel_height = w.kernel_h, shape.kernel_width = w.kernel_w;
  shape.stride_height = w.stride[0], shape.stride_width = w.stride[1];
  shape.pad_top = w.padding[0], shape.pad_left = w.padding[1];
  shape.dilation_height = w.dilation[0], shape.dilation_width = w.dilation[1];
  Input input = prepared;
  if (!w.pointwise()) input.conv = &shape;
  if ((*weight).header->kind != TileKind::depthwise) return multiply(*weight, input, epilogue, w.pixels());
  const int64_t channels = w.channels * w.groups;
  const Depthwise depthwise{shape, channels, (*weight).pairs, (*weight).sums};
  const Kernels& kernel = kernels(active_isa());
  torch::stable::parallel_for(0, w.pixels(), grain(channels * a.weight.depth / 4),
                              [&](int64_t b, int64_t e) { kernel.depthwise(depthwise, input, epilogue, b, e); });
}

}  // namespace sparseq::gemm
