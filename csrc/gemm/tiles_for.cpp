#include "tiles_for.h"

#include <map>
#include <mutex>
#include <tuple>

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

}  // namespace

TilesFor::TilesFor(const int8_t* weight, std::optional<std::span<const uint8_t>> given, const WeightShape& shape,
                   Isa isa) {
  if (!given) {
    made_ = std::make_shared<const AlignedBytes>(make_tiles(channels_inside(weight, shape).data(), shape, isa));
  } else {
    const auto size = int64_t(given->size());
    const TileHeader header = read_header(given->data(), size, shape);
    if (readable(header, given->data(), isa)) {
      weight_ = view_tiles(given->data(), size, shape);
      return;
    }
    static Repacked repacked;
    made_ = repacked.of(header, isa,
                        [&] { return make_tiles(channels_inside(weight, shape).data(), shape, isa, header.kind); });
  }
  weight_ = view_tiles(made_->data(), int64_t(made_->size()), shape);
}

std::vector<int8_t> channels_inside(const int8_t* weight, const WeightShape& shape) {
  const int64_t outputs = shape.groups * shape.out_channels, inputs = shape.in_channels, taps = shape.taps;
  std::vector<int8_t> to(size_t(outputs * inputs * taps));
  for (int64_t o = 0; o < outputs; ++o)
    for (int64_t i = 0; i < inputs; ++i)
      for (int64_t t = 0; t < taps; ++t) to[size_t((o * taps + t) * inputs + i)] = weight[(o * inputs + i) * taps + t];
  return to;
}

}  // namespace sparseq::gemm
