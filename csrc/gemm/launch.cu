#include <algorithm>

#include "direct.cuh"
#include "launch_kinds.h"
#include "launch_window.h"
#include "pack.cuh"
#include "rows.cuh"

namespace sparseq::gemm::cuda {
namespace {

unsigned blocks_for(int64_t work, int64_t each) { return unsigned((work + each - 1) / each); }

// A grid has at most 65535 blocks in its second and third dimension.
constexpr int64_t kMaxSplits = 64;

template <class T>
void quantize_rows_of(const RowGrid& g, cudaStream_t stream) {
  constexpr int N = kVectorBytes / int(sizeof(T));
  const bool fits = aligned<N>(static_cast<const T*>(g.x)) && g.stride % N == 0 && g.columns % N == 0 &&
                    aligned<N>(g.q) && g.q_stride % N == 0;
  const bool narrow = g.columns <= 32 * kHeld;  // a warp holds the row
  const unsigned blocks = blocks_for(g.rows, narrow ? 8 : 1);
  if (fits)
    narrow ? gemm::quantize_rows<T, N, 32><<<blocks, 256, 0, stream>>>(g)
           : gemm::quantize_rows<T, N, 256><<<blocks, 256, 0, stream>>>(g);
  else
    narrow ? gemm::quantize_rows<T, 1, 32><<<blocks, 256, 0, stream>>>(g)
           : gemm::quantize_rows<T, 1, 256><<<blocks, 256, 0, stream>>>(g);
}

}  // namespace

Cut cut_into(const CudaTiling& t, int64_t rows, bool large, int64_t splits) {
  Cut cut{large, std::max<int64_t>(1, splits)};
  // no part without a step
  const int64_t each = (std::max<int64_t>(1, t.steps) + cut.splits - 1) / cut.splits;
  cut.splits = (std::max<int64_t>(1, t.steps) + each - 1) / each;
  if (cut.splits > 1) cut.workspace = cut.splits * rows * t.shape.groups * t.blocks * kBlock * 4;
  return cut;
}

Cut cut_product(const CudaTiling& t, int64_t rows, int multiprocessors) {
  const bool sparse = t.kind == TileKind::sparse24;
  const auto tiles = [&](int64_t each) { return (rows + each - 1) / each * ((t.blocks + 1) / 2) * t.shape.groups; };
  if (rows > 32 && tiles(sparse ? 64 : 128) >= multiprocessors) return cut_into(t, rows, true, 1);
  // Few tiles: the sum is cut so that every multiprocessor has two blocks, but not below 8 steps, which hide what
  // starting a pipeline of 4 costs; and the partial sums should stay small beside the weight.
  const int64_t wanted = 2 * int64_t(multiprocessors) / std::max<int64_t>(1, tiles(32));
  const int64_t most = rows <= 128 ? std::min(t.steps / 8, kMaxSplits) : 1;
  return cut_into(t, rows, false, std::min(wanted, most));
}

void int8_product(const CudaTiling& tiling, const uint8_t* tiles, const Rows& x, Finish finish, const Cut& cut,
                  void* workspace, cudaStream_t stream) {
  finish.weight_sum = reinterpret_cast<const int32_t*>(tiles + tiling.sums_at);
  if (tiling.kind == TileKind::dense)
    dense_product(tiling, tiles, x, finish, cut, workspace, stream);
  else
    sparse_product(tiling, tiles, x, finish, cut, workspace, stream);
}

void direct_product(const WeightShape& shape, const PlainWeight& weight, const Rows& x, Finish finish,
                    cudaStream_t stream) {
  const int64_t outputs = shape.groups * shape.out_channels;
  if (x.count == 0 || outputs == 0) return;
  const CudaTiling tiling(TileKind::depthwise, 1, shape);
  finish.vector = false;
  DirectTask task{window_of(tiling, x),
                  weight,
                  x.is_signed ? 128 : 0,
                  weight.is_signed ? 128 : 0,
                  finish.x_zero,
                  finish.row_zero,
                  Divider(outputs),
                  Divider(shape.out_channels),
                  int32_t(x.conv != nullptr ? x.conv->kernel_height : 1),
                  finish};
  task.finish.weight_sum = task.finish.x_zero = task.finish.row_zero = nullptr;  // they are in the sum already
  direct<<<blocks_for(x.count * outputs, kDirectThreads), kDirectThreads, 0, stream>>>(task);
}

void pack_tiles(const CudaTiling& t, const int8_t* weight, uint8_t* tiles, cudaStream_t stream) {
  if (t.outputs() == 0) return;
  uint8_t* to = tiles + t.data_at;
  const int64_t count = t.shape.groups * t.blocks * t.steps;
  const FromDense from{weight};
  if (t.kind == TileKind::depthwise) {
    const int64_t values = t.outputs() * t.inputs();
    if (values)
      pack_plain<<<blocks_for(values, kPackThreads), kPackThreads, 0, stream>>>(
          weight, t.outputs(), t.shape.in_channels, t.shape.taps, reinterpret_cast<int8_t*>(to));
  } else if (count && t.kind == TileKind::dense) {
    pack_dense<<<unsigned(count), kPackThreads, 0, stream>>>(from, PackShape(t), to);
  } else if (count) {
    pack_sparse<<<unsigned(count), kPackThreads, 0, stream>>>(from, PackShape(t), to);
  }
  pack_sums<<<blocks_for(t.outputs(), kPackThreads / 32), kPackThreads, 0, stream>>>(weight, t.outputs(), t.inputs(),
                                                                                     int32_t(t.kind), tiles);
}

void pack_tiles_24(const CudaTiling& t, const void* values, const uint8_t* indices, uint8_t* tiles,
                   cudaStream_t stream) {
  if (t.outputs() == 0) return;
  uint8_t* to = tiles + t.data_at;
  const int64_t count = t.shape.groups * t.blocks * t.steps, groups = (t.shape.in_channels + 3) / 4;
  if (t.element == 1) {
    const FromCanonical<int8_t> from{static_cast<const int8_t*>(values), indices, groups};
    if (count) pack_sparse<<<unsigned(count), kPackThreads, 0, stream>>>(from, PackShape(t), to);
    pack_sums<<<blocks_for(t.outputs(), kPackThreads / 32), kPackThreads, 0, stream>>>(
        from.values, t.outputs(), t.shape.taps * groups * 2, int32_t(t.kind), tiles);
  } else if (count) {
    const FromCanonical<uint16_t> from{static_cast<const uint16_t*>(values), indices, groups};
    pack_sparse<<<blocks_for(count, 2), kPackThreads, 0, stream>>>(from, PackShape(t), to);
  }
}

void quantize_rows(const RowGrid& g, cudaStream_t stream) {
  if (g.rows == 0) return;
  switch (g.type) {
    case Element::f16: return quantize_rows_of<Half>(g, stream);
    case Element::bf16: return quantize_rows_of<BFloat16>(g, stream);
    default: return quantize_rows_of<float>(g, stream);
  }
}

}  // namespace sparseq::gemm::cuda
