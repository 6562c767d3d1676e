#include <algorithm>
#include <bit>

#include "histogram.cuh"
#include "launch.h"

namespace sparseq::affine::cuda {
namespace {

constexpr int64_t kMaxBlocks = 65536;
// Words of shared memory: 34 KB, so that a multiprocessor of 100 KB still holds two blocks, one of 164 KB four.
constexpr int64_t kWords = 8192 + 512;
constexpr int64_t kNeighbours = 1024;          // elements that a tile's run should have at least
constexpr int64_t kTasks = 1024;               // enough for any device
constexpr int64_t kAtOnce = int64_t{1} << 30;  // counted in 32 bits

int blocks_for(int64_t work, int64_t each) { return int(std::clamp<int64_t>((work + each - 1) / each, 1, kMaxBlocks)); }

template <int N, class T>
void run(const Counts& c, const CountTasks& tasks, const T* x, cudaStream_t stream) {
  const int blocks = blocks_for(tasks.tasks, 1);
  const size_t words = size_t(tasks.tile) * (size_t(tasks.copies) * ((size_t(1) << c.log2_bins) + 1) + 1);
  if (tasks.tile == 1)
    count<N, false><<<blocks, kCountThreads, words * sizeof(uint32_t), stream>>>(c, tasks, x);
  else
    count<N, true><<<blocks, kCountThreads, words * sizeof(uint32_t), stream>>>(c, tasks, x);
}

template <class T>
void histogram(const Layout& l, const T* x, const Counts& c, cudaStream_t stream) {
  constexpr int N = kVectorBytes / int(sizeof(T));
  const int64_t bins = int64_t{1} << c.log2_bins, per_channel = l.outer * l.inner;
  const int64_t room = kWords / (bins + 2);  // channels whose counters fit
  if (room == 0 || 8 * per_channel < bins) {
    count_straight<<<blocks_for(l.numel(), kCountThreads), kCountThreads, 0, stream>>>(
        c, Divider(l.inner), Divider(l.channels), x, l.numel());
    return;
  }
  int64_t tile = std::min({room, l.channels, (kNeighbours + l.inner - 1) / l.inner});
  if (tile > N) tile -= tile % N;  // vectors that end with the tile
  int copies = 1;
  while (copies < 8 && tile * ((bins + 1) * 2 * copies + 1) <= kWords) copies *= 2;
  const int64_t tiles = (l.channels + tile - 1) / tile, span = tile * l.inner, positions = l.outer * span;
  const int64_t wanted = std::max<int64_t>(1, kTasks / tiles);
  // a task should count several times as much as it clears and adds up
  int64_t each = std::max({(positions + wanted - 1) / wanted, 4 * tile * bins, int64_t{16} * kCountThreads});
  each = (std::min(each, kAtOnce) + N - 1) / N * N;
  const int64_t parts = (positions + each - 1) / each, stride = l.channels * l.inner;
  const CountTasks tasks{tiles * parts, positions,      each,          stride,          int(tile),
                         copies,        Divider(tiles), Divider(span), Divider(l.inner)};
  // vectors start on a boundary in every run; a single run may have a tail
  const bool even = (stride % N == 0 && span % N == 0) || l.outer * l.channels == 1;
  if (even && aligned<N>(x))
    run<N>(c, tasks, x, stream);
  else
    run<1>(c, tasks, x, stream);
}

}  // namespace

void histogram(DType type, const Layout& layout, const void* x, const float* limit, int64_t bins, int64_t channels,
               int64_t* counts, cudaStream_t stream) {
  const size_t bytes = size_t(channels) * size_t(bins) * sizeof(int64_t);
  // a failure stays for the caller's cudaGetLastError
  if (bytes != 0 && cudaMemsetAsync(counts, 0, bytes, stream) != cudaSuccess) return;
  if (layout.numel() == 0) return;
  const Counts c{limit, reinterpret_cast<unsigned long long*>(counts), layout.channels,
                 std::countr_zero(static_cast<uint64_t>(bins))};
  switch (type) {
    case DType::float32: return histogram(layout, static_cast<const float*>(x), c, stream);
    case DType::float16: return histogram(layout, static_cast<const Half*>(x), c, stream);
    case DType::bfloat16: return histogram(layout, static_cast<const BFloat16*>(x), c, stream);
  }
}

}  // namespace sparseq::affine::cuda
