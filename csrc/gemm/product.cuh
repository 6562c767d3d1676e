// The product kernel: INT8 dense and 2:4, float16 and bfloat16 2:4, of rows or of the windows of images. No torch
// header. Weights are the tensor cores' A operand, since it is A that may be 2:4: a block computes a tile of
// (outputs, rows), transposed against how it is stored.
//
//   for each step (64 bytes of every output):
//     wait for the tile of this step; a barrier; start the copies of the one that is kStages - 1 steps ahead
//     multiply: warps are arranged kWarpsM (64 outputs each) x kWarpsN (8 kTilesN rows each)
//
// One barrier a step is enough: the copies that follow it overwrite the tile of the step before, which every warp
// has read by then.
#pragma once

#include "finish.cuh"
#include "loader.cuh"

namespace sparseq::gemm {
namespace {

template <int kWarpsM_, int kWarpsN_, int kTilesN_, int kStages_, int kPerMultiprocessor_>
struct Shape {
  static constexpr int kWarpsM = kWarpsM_, kWarpsN = kWarpsN_, kTilesN = kTilesN_, kStages = kStages_;
  static constexpr int kPerMultiprocessor = kPerMultiprocessor_;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kOutputs = cuda::kBlock * kWarpsM, kRows = 8 * kTilesN * kWarpsN;
};

// 48 KiB of shared memory at most, what a kernel has without asking: two blocks fit every multiprocessor.
template <class Product, bool kLarge>
using ShapeOf = std::conditional_t<kLarge, Shape<2, Product::kSparse ? 2 : 4, 4, 3, Product::kSparse ? 3 : 2>,
                                   Shape<2, 2, 2, 4, 3>>;

struct Task {
  const uint8_t* tiles;
  int64_t tile_bytes;
  int32_t blocks, steps;  // of a group
  int32_t outputs;        // of a group
  int32_t splits, each;   // parts of the sum; steps of a part
  void* partial;          // [splits][rows][groups][64 * blocks] where splits > 1
  Window window;
  cuda::Finish finish;
};

template <class Product, class Tile, Source kSource>
struct Kernel {
  using Sum = typename Product::Sum;
  static constexpr int kStep = Product::kSparse ? 128 : 64;  // bytes of a row of activations in a step
  static constexpr int kValues = Tile::kWarpsM * cuda::kValueBytes, kStage = kValues + Tile::kRows * kStep;
  static constexpr int kWords = 4 * Product::kWords;  // of metadata, of a lane, in a step
  static_assert(Tile::kStages * kStage <= 48 * 1024);

  // The weights of a step: one run of memory for each 64 outputs, `line` bytes apart. from: the thread's first
  // chunk. Where there is no second block of outputs, zeros.
  static __device__ __forceinline__ void load_weights(const uint8_t* from, int64_t line, int blocks, uint32_t to) {
    constexpr int kEach = kValues / kChunk / Tile::kThreads, kBlocks = Tile::kWarpsM;
    to += place<cuda::kLine>(int(threadIdx.x) / 4, int(threadIdx.x) % 4);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int block = i * kBlocks / kEach, within = i * Tile::kThreads * kChunk - block * cuda::kValueBytes;
      const bool there = block < blocks;
      copy_16(to + uint32_t(i * Tile::kThreads * kChunk), there ? from + block * line + within : from,
              there ? kChunk : 0);
    }
  }

  static __device__ __forceinline__ void load_words(const uint8_t* metadata,
                                                    uint32_t (&words)[kWords > 0 ? kWords : 1]) {
    if constexpr (kWords > 0) {
      const auto* from = reinterpret_cast<const uint4*>(metadata) + size_t(threadIdx.x % 32 * (kWords / 4));
#pragma unroll
      for (int i = 0; i < kWords / 4; ++i) {
        const uint4 v = __ldg(from + i);
        words[4 * i] = v.x, words[4 * i + 1] = v.y, words[4 * i + 2] = v.z, words[4 * i + 3] = v.w;
      }
    }
  }

  // One half of a step. weights, rows: the first address that this lane names. The chunks of the second half are
  // two (of 2:4 rows: four) further on, which the swizzle makes a flip of one bit.
  template <int kHalf>
  static __device__ __forceinline__ void multiply(Sum (&sums)[4][Tile::kTilesN][4], uint32_t weights, uint32_t rows,
                                                  uint32_t (&b)[Tile::kTilesN][4], const uint32_t* words) {
    uint32_t a[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      load_matrices(a[i], (weights ^ uint32_t(kHalf * 2 * kChunk)) + uint32_t(i * 16 * cuda::kLine));
    if (Product::kSparse || kHalf == 0) {  // dense: both halves' chunks at once
#pragma unroll
      for (int j = 0; j < Tile::kTilesN; ++j)
        load_matrices(b[j], (rows ^ uint32_t(kHalf * 4 * kChunk)) + uint32_t(j * 8 * kStep));
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < Tile::kTilesN; ++j)
        Product::template add<kHalf>(sums[i][j], a[i], b[j], words + i * Product::kWords);
  }

  // Lane 4 g + t has, of rows 8 j + 2 t and the next, the outputs 8 g to 8 g + 7: see cuda_tiles.h.
  // What the outputs have in common is in shared memory, `constants` on: it would not fit beside the sums.
  static __device__ __forceinline__ void store(const Task& task, Sum (&sums)[4][Tile::kTilesN][4], int group, int block,
                                               int split, int64_t m, uint32_t constants) {
    const int lane = int(threadIdx.x) % 32, at = block % Tile::kWarpsM * cuda::kBlock + lane / 4 * 8;
    const int output = block * cuda::kBlock + lane / 4 * 8, left = task.outputs - output;
    const int64_t first = int64_t(group) * task.outputs + output;
    constexpr int kRows = 2 * Tile::kTilesN;
#pragma unroll 1  // the code of one row, not of all of them: the sums move down instead
    for (int r = 0; r < kRows; ++r) {
      Sum v[8];
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        v[k] = sums[k / 2][0][k % 2 * 2];
#pragma unroll
        for (int n = 0; n + 1 < kRows; ++n)
          sums[k / 2][n / 2][k % 2 * 2 + n % 2] = sums[k / 2][(n + 1) / 2][k % 2 * 2 + (n + 1) % 2];
      }
      const int64_t row = m + int64_t(r / 2 * 8 + lane % 4 * 2 + r % 2);
      if (row >= task.window.count) continue;
      if (task.splits > 1) {
        const int64_t pitch = int64_t(task.blocks) * cuda::kBlock;
        Sum* to = static_cast<Sum*>(task.partial) +
                  ((split * task.window.count + row) * (gridDim.z / task.splits) + group) * pitch + output;
        uint4 halves[2];
        memcpy(halves, v, sizeof v);
        reinterpret_cast<uint4*>(to)[0] = halves[0];
        reinterpret_cast<uint4*>(to)[1] = halves[1];
      } else if (left > 0) {
        const Outputs<8> outputs(constants, Tile::kOutputs, at, first, left < 8 ? left : 8);
        outputs.row(task.finish, v, row);
      }
    }
  }

  static __device__ __forceinline__ void run(const Task& task, uint32_t shared) {
    const int warp = int(threadIdx.x) / 32, warp_m = warp / Tile::kWarpsN, warp_n = warp % Tile::kWarpsN;
    const int group = int(blockIdx.z) / task.splits, split = int(blockIdx.z) % task.splits;
    const int block = int(blockIdx.y) * Tile::kWarpsM, mine = block + warp_m;
    const int64_t m = int64_t(blockIdx.x) * Tile::kRows;
    const int begin = split * task.each, end = task.steps < begin + task.each ? task.steps : begin + task.each;
    const int64_t line = int64_t(task.steps) * task.tile_bytes;  // the tiles of 64 outputs
    const int blocks = task.blocks - block, lane = int(threadIdx.x) % 32;
    const uint8_t* tiles = task.tiles + (int64_t(group) * task.blocks + block) * line + begin * task.tile_bytes;
    // a block of outputs past the last one is computed, with the first one's metadata, and thrown away
    const uint8_t* metadata = tiles + (warp_m < blocks ? warp_m * line : 0) + cuda::kValueBytes;
    tiles += size_t(threadIdx.x * kChunk);

    Loader<kSource, kStep, Tile::kRows, Tile::kThreads> loader(task.window, group, m, begin);
    Sum sums[4][Tile::kTilesN][4] = {};
    uint32_t words[2][kWords > 0 ? kWords : 1];
#pragma unroll
    for (int s = 0; s + 1 < Tile::kStages; ++s) {
      if (begin + s < end) {
        load_weights(tiles, line, blocks, shared + uint32_t(s * kStage));
        loader.next(task.window, shared + uint32_t(s * kStage + kValues));
        tiles += task.tile_bytes;
      }
      close_copies();
    }
    load_words(metadata, words[0]);
    const uint32_t my_weights =
        shared + uint32_t(warp_m * cuda::kValueBytes) + place<cuda::kLine>(lane % 16, lane / 16);
    const uint32_t my_rows =
        shared + uint32_t(kValues + warp_n * Tile::kTilesN * 8 * kStep) + place<kStep>(lane % 8, lane / 8);
    uint32_t reading = 0, writing = shared + (Tile::kStages - 1) * kStage;
#pragma unroll 1
    for (int step = begin; step < end; ++step) {
      await_copies<Tile::kStages - 2>();
      __syncthreads();
      if (step + Tile::kStages - 1 < end) {
        load_weights(tiles, line, blocks, writing);
        loader.next(task.window, writing + kValues);
        tiles += task.tile_bytes;
      }
      close_copies();
      metadata += task.tile_bytes;
      if (step + 1 < end) load_words(metadata, words[1]);
      uint32_t b[Tile::kTilesN][4];
      multiply<0>(sums, my_weights + reading, my_rows + reading, b, words[0]);
      multiply<1>(sums, my_weights + reading, my_rows + reading, b, words[0]);
      if constexpr (kWords > 0) {
#pragma unroll
        for (int i = 0; i < kWords; ++i) words[0][i] = words[1][i];
      }
      reading = reading == (Tile::kStages - 1) * kStage ? 0 : reading + kStage;
      writing = writing == shared + (Tile::kStages - 1) * kStage ? shared : writing + kStage;
    }
    await_copies<0>();
    __syncthreads();  // the tiles are read: their memory is free
    if (task.splits == 1 && int(threadIdx.x) < Tile::kOutputs) {
      const int output = block * cuda::kBlock + int(threadIdx.x);
      const Outputs<1> constants(task.finish, int64_t(group) * task.outputs + output, output < task.outputs);
      constants.keep(shared, Tile::kOutputs, int(threadIdx.x));
    }
    __syncthreads();
    if (mine < task.blocks) store(task, sums, group, mine, split, m + warp_n * Tile::kTilesN * 8, shared);
  }
};

template <class Product, bool kLarge, Source kSource>
__global__ void __launch_bounds__(ShapeOf<Product, kLarge>::kThreads, ShapeOf<Product, kLarge>::kPerMultiprocessor)
    product(const Task task) {
  using K = Kernel<Product, ShapeOf<Product, kLarge>, kSource>;
  __shared__ __align__(128) uint8_t shared[ShapeOf<Product, kLarge>::kStages * K::kStage];
  const Task copied = task;  // read by name, not through its address
  K::run(copied, shared_address(shared));
}

// The second kernel of a product in parts: 8 outputs of one row a thread.
template <class Sum>
__global__ void __launch_bounds__(256) finish_parts(const Task given, Divider runs, int32_t groups) {
  const Task task = at_once(given);
  const int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x;
  const int64_t m = runs.divide(i), run = i - m * runs.divisor;  // runs: of 8 outputs, in a row of all groups
  if (m >= task.window.count) return;
  const int pitch = task.blocks * cuda::kBlock, group = int(run * 8 / pitch), output = int(run * 8 % pitch);
  const int left = task.outputs - output;
  if (left <= 0) return;
  Sum total[8] = {};
  for (int s = 0; s < task.splits; ++s) {
    const Sum* from =
        static_cast<const Sum*>(task.partial) + ((s * task.window.count + m) * groups + group) * pitch + output;
    const uint4 halves[2] = {__ldg(reinterpret_cast<const uint4*>(from)),
                             __ldg(reinterpret_cast<const uint4*>(from) + 1)};
    Sum v[8];
    memcpy(v, halves, sizeof v);
#pragma unroll
    for (int k = 0; k < 8; ++k) total[k] += v[k];
  }
  const Outputs<8> outputs(task.finish, int64_t(group) * task.outputs + output, left < 8 ? left : 8);
  outputs.row(task.finish, total, m);
}

}  // namespace
}  // namespace sparseq::gemm
