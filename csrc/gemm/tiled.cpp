// The tiled path of the INT8 products: signed weights, packed for this machine, dense or 2:4.
#include <cstring>

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

// Kernels read u8: a signed activation a becomes a + 128, which is a flip of its top bit.
struct Activations {
  Tensor bytes;
  uint8_t* data;
  uint8_t flip;
  int32_t zero;
  Activations(const Arguments& a, const Tensor& x, int64_t count)
      : bytes(torch::stable::empty({count + kInputSlack}, ScalarType::Byte)),
        data(static_cast<uint8_t*>(bytes.mutable_data_ptr())),
        flip(x.scalar_type() == ScalarType::Char ? 0x80 : 0),
        zero(a.zero() + flip) {
    std::memset(data + count, 0, size_t(kInputSlack));
  }
};

void flip_bytes(const uint8_t* __restrict from, uint8_t* __restrict to, int64_t count, uint8_t flip) {
  for (int64_t i = 0; i < count; ++i) to[i] = uint8_t(from[i] ^ flip);
}

Epilogue epilogue_of(const Arguments& a, int32_t zero, float* y) {
  Epilogue e;
  e.multiplier = a.scale.data;
  e.bias = a.bias.data;
  e.zero = zero;
  e.output = y;
  e.output_stride = a.weight.rows;
  return e;
}

void multiply(const TiledWeight& weight, const Input& input, const Epilogue& epilogue, int64_t rows) {
  const Kernels& kernel = kernels(active_isa());
  const int threads = int(torch::stable::get_num_threads());
  const WorkPlan plan = plan_work(weight.tiles, rows, cache_sizes(), threads);
  const WeightShape& s = weight.tiles.shape;
  const int64_t products = rows * s.groups * s.out_channels * s.taps * s.in_channels / std::max<int64_t>(1, plan.items);
  torch::stable::parallel_for(0, plan.items, grain(products / 8),
                              [&](int64_t b, int64_t e) { kernel.run(weight.tiles, input, epilogue, plan, b, e); });
}

// NHWC, whatever the strides of x are.
void gather_images(const Window& w, const Tensor& x, const Activations& to) {
  const int64_t channels = w.channels * w.groups;
  const auto* from = static_cast<const uint8_t*>(x.const_data_ptr());
  const int64_t image = x.stride(0), plane = x.stride(1), line = x.stride(2), step = x.stride(3);
  torch::stable::parallel_for(0, w.batch * w.height, grain(8 * w.width * channels), [&](int64_t b, int64_t e) {
    for (int64_t r = b; r < e; ++r) {
      const uint8_t* row = from + r / w.height * image + r % w.height * line;
      uint8_t* out = to.data + r * w.width * channels;
      if (plane == 1) {
        for (int64_t i = 0; i < w.width; ++i) flip_bytes(row + i * step, out + i * channels, channels, to.flip);
        continue;
      }
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t i = 0; i < w.width; ++i) out[i * channels + c] = uint8_t(row[c * plane + i * step] ^ to.flip);
    }
  });
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

void tiled_linear(const Arguments& a, const std::optional<Tensor>& tiles, const Tensor& x, int64_t rows, float* y) {
  const int64_t k = a.weight.depth;
  const TilesFor weight(a, tiles, {1, a.weight.rows, 1, k});
  const Activations activations(a, x, rows * k);
  const auto* from = static_cast<const uint8_t*>(x.const_data_ptr());
  torch::stable::parallel_for(0, rows * k, 262144, [&](int64_t b, int64_t e) {
    flip_bytes(from + b, activations.data + b, e - b, activations.flip);
  });
  Input input;
  input.data = activations.data;
  input.stride = k;
  multiply(*weight, input, epilogue_of(a, activations.zero, y), rows);
}

void tiled_conv2d(const Arguments& a, const std::optional<Tensor>& tiles, const Window& w, const Tensor& x, float* y) {
  const int64_t channels = w.channels * w.groups;
  const TilesFor weight(a, tiles, {w.groups, a.weight.rows / w.groups, w.kernel_h * w.kernel_w, w.channels});
  const Activations activations(a, x, w.batch * w.height * w.width * channels);
  gather_images(w, x, activations);
  ConvShape shape;
  shape.batch = w.batch, shape.height = w.height, shape.width = w.width;
  shape.out_height = w.rows, shape.out_width = w.columns;
  shape.kernel_height = w.kernel_h, shape.kernel_width = w.kernel_w;
  shape.stride_height = w.stride[0], shape.stride_width = w.stride[1];
  shape.pad_top = w.padding[0], shape.pad_left = w.padding[1];
  shape.dilation_height = w.dilation[0], shape.dilation_width = w.dilation[1];
  const std::vector<uint8_t> padding(size_t(channels + kInputSlack), uint8_t(activations.zero));
  Input input;
  input.data = activations.data;
  input.stride = channels;
  input.conv = &shape;
  input.padding = padding.data();
  const Epilogue epilogue = epilogue_of(a, activations.zero, y);
  if ((*weight).header->kind != TileKind::depthwise) return multiply(*weight, input, epilogue, w.pixels());
  const Depthwise depthwise{shape, channels, (*weight).pairs, (*weight).sums};
  const Kernels& kernel = kernels(active_isa());
  torch::stable::parallel_for(0, w.pixels(), grain(channels * a.weight.depth / 4),
                              [&](int64_t b, int64_t e) { kernel.depthwise(depthwise, input, epilogue, b, e); });
}

}  // namespace sparseq::gemm
