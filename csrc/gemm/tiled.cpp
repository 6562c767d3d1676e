// The tiled path of the INT8 products: signed weights, packed for this machine, dense or 2:4.
#include <map>
#include <memory>
#include <mutex>
#include <tuple>

#include "arguments.h"
#include "tiles.h"

namespace sparseq::gemm {
namespace {

using Made = std::shared_ptr<const AlignedBytes>;

// What an exported program brought and this machine cannot read as it is (tiles.h), packed anew on the first call.
class Repacked {
 public:
  template <class Make>
  Made of(const TileHeader& header, Isa isa, Make make) {
    const Key key{header.content,    int(header.kind),        int(isa), header.shape.groups, header.shape.out_channels,
                  header.shape.taps, header.shape.in_channels};
    {
      const std::lock_guard lock(mutex_);
      if (const auto found = kept_.find(key); found != kept_.end()) return found->second;
    }
    Made made = std::make_shared<const AlignedBytes>(make());
    const std::lock_guard lock(mutex_);
    if (size_ += made->size(); size_ > kMost) kept_.clear(), size_ = made->size();  // calls under way hold theirs
    return kept_.emplace(key, std::move(made)).first->second;
  }

 private:
  using Key = std::tuple<uint64_t, int, int, int64_t, int64_t, int64_t, int64_t>;
  static constexpr size_t kMost = size_t{1} << 30;
  std::mutex mutex_;
  std::map<Key, Made> kept_;
  size_t size_ = 0;
};

// Tiles at hand, where the ISA in use can read them, or packed from the weight.
class TilesFor {
 public:
  TilesFor(const Arguments& a, const std::optional<Tensor>& given, const WeightShape& shape) {
    const Isa isa = active_isa();
    if (!given) {
      made_ = std::make_shared<const AlignedBytes>(make_tiles(channels_inside(a.weight.dense).data(), shape, isa));
    } else {
      const auto* bytes = static_cast<const uint8_t*>(given->const_data_ptr());
      STD_TORCH_CHECK(given->scalar_type() == ScalarType::Byte && given->is_contiguous(),
                      "tiles must be a contiguous uint8 tensor");
      const TileHeader header = read_header(bytes, given->numel(), shape);
      if (readable(header, bytes, isa)) {
        weight_ = view_tiles(bytes, given->numel(), shape);
        return;
      }
      static Repacked repacked;
      made_ = repacked.of(header, isa,
                          [&] { return make_tiles(channels_inside(a.weight.dense).data(), shape, isa, header.kind); });
    }
    weight_ = view_tiles(made_->data(), int64_t(made_->size()), shape);
  }
  const TiledWeight& operator*() const { return weight_; }

 private:
  Made made_;
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
