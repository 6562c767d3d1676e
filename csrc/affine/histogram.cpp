// histogram on the CPU: one pass over x, each thread with 32-bit counters of its own, added up in 64 bits.
//
// The floor is x's bytes at the speed of a copy. What it costs is one increment a value, 0.8 ns at 3 GHz: a load, an
// addition and a store that the next increment of the same counter waits for. Neighbours of one channel therefore
// count in `copies` sets of counters in turn, as long as these stay in the first-level cache. Many channels side by
// side need more counters than that: their bins are written down first, and each channel is counted by itself.
#include "histogram.h"

#include <numeric>

namespace sparseq::affine {
namespace {

constexpr int64_t kGrain = 32768;              // elements: some 30 us of work, well over a thread's wake-up
constexpr int64_t kLanes = 16;                 // what a kernel takes at once
constexpr int64_t kCopies = 4;                 // sets of counters at most
constexpr int64_t kCached = 8192;              // counters that the first-level cache holds
constexpr int64_t kTile = 131072;              // counters of a tile: they may fill a second-level cache
constexpr int64_t kWidth = 256;                // columns of a tile
constexpr int64_t kAtOnce = int64_t{1} << 31;  // elements counted in 32 bits

// How the work is cut. Runs of at least kLanes neighbours: a task counts one channel, or a part of its elements.
// Shorter ones: x is rows of channels * inner columns; a task counts a tile of channels in some of the rows.
struct Plan {
  Plan(const Layout& l, int64_t bin_count) : layout(l), bins(bin_count), by_columns(l.inner < kNarrow) {
    positions = by_columns ? layout.outer : layout.outer * layout.inner;
    if (by_columns) {
      const int64_t room = std::max(kLanes, std::min(kTile / bins, kWidth / layout.inner) / kLanes * kLanes);
      tile = std::min(room, layout.channels);
      written_down = layout.outer >= kLanes && tile * bins > kCached && bins < kMaxBins;
      // rows that lie side by side are joined until vectors fill them
      const int64_t width = tile * layout.inner;
      if (tile == layout.channels) joined = kLanes / std::gcd(kLanes, width);
      while (written_down && joined > 1 && joined * width > kWidth) joined /= 2;
    }
    tiles = (layout.channels + tile - 1) / tile;
    // copies are to be cleared and added up too
    const int64_t few = std::min(kCached, layout.numel() / tiles / 4);
    while (copies < kCopies && 2 * copies * tile * bins <= few) copies *= 2;

    // several parts of a tile where tiles alone leave threads without work, each worth counters of its own
    const int64_t threads = torch::stable::get_num_threads(), per_tile = layout.numel() / tiles;
    const int64_t wanted = threads > 1 ? std::max<int64_t>(1, 4 * threads / tiles) : 1;
    const int64_t worth = std::clamp<int64_t>(per_tile / std::max(kGrain, 8 * tile * bins), 1, wanted);
    const int64_t at_once = std::max<int64_t>(1, kAtOnce / (by_columns ? layout.inner : 1));
    each = std::min((positions + worth - 1) / worth, at_once);
    parts = (positions + each - 1) / each;
  }
  // Counters of a column; a cache line more than the bins keeps copies apart in the cache's sets.
  int64_t pitch() const { return bins + kLanes; }

  Layout layout;
  int64_t bins;
  bool by_columns;
  int64_t tile = 1, tiles = 1;  // channels of a task
  int64_t joined = 1;           // rows that a kernel takes as one
  int64_t copies = 1;
  bool written_down = false;                   // by columns: as Counted's places
  int64_t positions = 0, each = 1, parts = 1;  // rows, or elements of a channel; those of a part
};

// One thread's counters.
class Counter {
 public:
  Counter(const Plan& plan, DType type, const void* x, const float* limit)
      : plan_(plan),
        kernel_(kernels(active_isa()).histogram[int(type)]),
        x_(x),
        limit_(limit),
        counts_(size_t(plan.tile * plan.copies * plan.pitch())) {
    const int64_t inner = plan.layout.inner, width = plan.by_columns ? plan.joined * plan.tile * inner : kLanes;
    if (plan.written_down) places_.resize(size_t(width * kBlockPitch));
    inverse_.resize(size_t(width));
    first_.resize(size_t(width));
    for (int64_t i = 0; i < width; ++i) {
      // the channel within the tile, and which of its neighbours this is
      const int64_t row = i / (plan.tile * inner), within = i % (plan.tile * inner);
      const int64_t channel = plan.by_columns ? within / inner : 0;
      const int64_t turn = plan.by_columns ? row * inner + within % inner : i;
      first_[size_t(i)] = float((channel * plan.copies + turn % plan.copies) * plan.pitch());
    }
  }

  void count(int64_t task, int64_t* out) {
    const int64_t tile = task / plan_.parts, channel = tile * plan_.tile;
    const int64_t begin = task % plan_.parts * plan_.each, end = std::min(begin + plan_.each, plan_.positions);
    const int64_t channels = std::min(plan_.tile, plan_.layout.channels - channel);
    if (plan_.by_columns)
      count_columns(channel, channels, begin, end);
    else
      count_runs(channel, begin, end);
    for (int64_t c = 0; c < channels; ++c) flush(c, out + (channel + c) * plan_.bins);
  }

 private:
  void count_columns(int64_t channel, int64_t channels, int64_t begin, int64_t end) {
    const int64_t inner = plan_.layout.inner, width = channels * inner, stride = plan_.layout.channels * inner;
    for (int64_t i = 0; i < plan_.joined * width; ++i) inverse_[size_t(i)] = 1 / limit_[channel + i % width / inner];
    const int64_t at = begin * stride + channel * inner, rows = (end - begin) / plan_.joined;
    const int64_t rest = (end - begin) % plan_.joined;
    // joined rows fill x's rows: only then is there more than one
    run(rows, plan_.joined * width, plan_.joined * stride, at);
    if (rest) run(1, rest * width, 0, at + rows * plan_.joined * stride);
  }

  void count_runs(int64_t channel, int64_t begin, int64_t end) {
    std::fill(inverse_.begin(), inverse_.end(), 1 / limit_[channel]);
    const int64_t inner = plan_.layout.inner;
    for (int64_t i = begin; i < end;) {
      const int64_t outer = i / inner, stop = std::min(end, (outer + 1) * inner), length = stop - i;
      const int64_t at = (outer * plan_.layout.channels + channel) * inner + i % inner;
      run(length / kLanes, kLanes, kLanes, at);
      if (length % kLanes) run(1, length % kLanes, 0, at + length / kLanes * kLanes);
      i = stop;
    }
  }

  void run(int64_t rows, int64_t width, int64_t stride, int64_t at) {
    kernel_({rows, width, stride, inverse_.data(), first_.data(), float(plan_.bins / 2),
             plan_.written_down ? places_.data() : nullptr},
            x_, at, counts_.data());
  }

  // A channel's counters into its row of the result; they are zero again afterwards.
  void flush(int64_t channel, int64_t* out) {
    uint32_t* from = counts_.data() + channel * plan_.copies * plan_.pitch();
    for (int64_t k = 1; k < plan_.copies; ++k)  // at most kAtOnce in all
      for (int64_t i = 0; i < plan_.bins; ++i) from[i] += from[k * plan_.pitch() + i];
    if (plan_.parts == 1)
      for (int64_t i = 0; i < plan_.bins; ++i) out[i] = from[i];
    else
      for (int64_t i = 0; i < plan_.bins; ++i)
        if (from[i]) __atomic_fetch_add(out + i, int64_t(from[i]), __ATOMIC_RELAXED);
    std::fill_n(from, plan_.copies * plan_.pitch(), 0);
  }

  const Plan& plan_;
  void (*kernel_)(const Counted&, const void*, int64_t, uint32_t*);
  const void* x_;
  const float* limit_;
  std::vector<float> inverse_, first_;
  std::vector<uint32_t> counts_;
  std::vector<uint16_t> places_;
};

Tensor histogram_cpu(const Tensor& x, const Tensor& limit, int64_t bins, std::optional<int64_t> axis,
                     std::optional<int64_t> group_size) {
  const DType type = float_dtype("histogram", "x", x.scalar_type());
  const Histogram h = histogram_of(x, limit, bins, axis, group_size);
  Tensor counts = fresh(h.shape, ScalarType::Long, sizeof(int64_t), false);
  auto* to = static_cast<int64_t*>(counts.mutable_data_ptr());
  const auto clear = [&] { std::fill_n(to, counts.numel(), 0); };
  if (x.numel() == 0) {
    clear();
    return counts;
  }
  const Plan plan(h.arranged.layout, bins);
  if (plan.parts > 1) clear();  // to be added to
  const void* from = h.arranged.x.const_data_ptr();
  const auto* limits = static_cast<const float*>(h.limit.const_data_ptr());
  const int64_t tasks = plan.tiles * plan.parts, each = plan.layout.numel() / tasks + plan.tile * bins;
  torch::stable::parallel_for(0, tasks, std::max<int64_t>(1, kGrain / each), [&](int64_t begin, int64_t end) {
    Counter counter(plan, type, from, limits);
    for (int64_t task = begin; task < end; ++task) counter.count(task, to);
  });
  return counts;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseq, CPU, m) { m.impl("histogram", TORCH_BOX(&histogram_cpu)); }

}  // namespace sparseq::affine
