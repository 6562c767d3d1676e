// Chooses and launches an instance of the product kernel: one file of csrc compiles those of one kind of weight.
#pragma once

#include "launch_window.h"
#include "product.cuh"

namespace sparseq::gemm::cuda {
namespace {

template <class Product, bool kLarge, Source kSource>
void launch_tile(const Task& task, int64_t groups, cudaStream_t stream) {
  using Tile = ShapeOf<Product, kLarge>;
  const auto parts = [](int64_t n, int each) { return unsigned((n + each - 1) / each); };
  const dim3 grid(parts(task.window.count, Tile::kRows), parts(task.blocks, Tile::kWarpsM),
                  unsigned(groups * task.splits));
  product<Product, kLarge, kSource><<<grid, Tile::kThreads, 0, stream>>>(task);
}

template <class Product>
void launch_product(const CudaTiling& tiling, const uint8_t* tiles, const Rows& x, Finish finish, const Cut& cut,
                    void* workspace, cudaStream_t stream) {
  if (x.count == 0 || tiling.outputs() == 0) return;
  finish.vector = vectors_fit(finish, tiling.shape.groups == 1 || tiling.shape.out_channels % 8 == 0);
  Task task{tiles + tiling.data_at,
            tiling.tile_bytes,
            int32_t(tiling.blocks),
            int32_t(tiling.steps),
            int32_t(tiling.shape.out_channels),
            int32_t(cut.splits),
            int32_t((tiling.steps + cut.splits - 1) / cut.splits),
            workspace,
            window_of(tiling, x),
            finish};
  const int64_t groups = tiling.shape.groups;
  const auto source = source_of(tiling, x);
  if (source == Source::any)
    launch_tile<Product, false, Source::any>(task, groups, stream);
  else if (source == Source::rows)
    cut.large ? launch_tile<Product, true, Source::rows>(task, groups, stream)
              : launch_tile<Product, false, Source::rows>(task, groups, stream);
  else if constexpr (Product::kElement == 1)
    cut.large ? launch_tile<Product, true, Source::windows>(task, groups, stream)
              : launch_tile<Product, false, Source::windows>(task, groups, stream);
  if (task.splits == 1) return;
  const int64_t runs = groups * tiling.blocks * kBlock / 8;
  const auto blocks = unsigned((x.count * runs + 255) / 256);
  finish_parts<typename Product::Sum><<<blocks, 256, 0, stream>>>(task, Divider(runs), int32_t(groups));
}

}  // namespace
}  // namespace sparseq::gemm::cuda
