// INT8 products with the instructions of a fast kernel (cp.async double buffering, swizzled shared memory, ldmatrix,
// mma and mma.sp), as small as they go. They test the interpreter: each BUG_... plants a fault that it must find.
#include <cuda_runtime_api.h>

#include <cstdint>

namespace {

constexpr int kTile = 64;  // rows and columns of y that a block computes: four warps of 32 x 32
constexpr int kStep = 64;  // of k in one stage
constexpr int kThreads = 128;
constexpr int kChunk = 16;  // bytes of one copy and of one row of an ldmatrix matrix
constexpr int kStages = 2;

// Where a chunk of a row lies in shared memory: rows that ldmatrix reads together lie in different banks.
template <int kChunks>
__device__ __forceinline__ int place(int row, int chunk) {
  return (row * kChunks + (chunk ^ (row / (8 / kChunks) % kChunks))) * kChunk;
}

__device__ __forceinline__ uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? kChunk : 0)
               : "memory");
}

template <int kLeft>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

__device__ __forceinline__ void multiply(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#ifdef BUG_SELECTOR
#define SELECTOR "0x1"
#else
#define SELECTOR "0x0"
#endif

__device__ __forceinline__ void multiply(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t e) {
  asm volatile(
      "mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, " SELECTOR ";"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(e));
}

// A tile of `rows` x kChunks chunks of a row-major matrix; what lies outside of it becomes zeros.
template <int kChunks>
__device__ __forceinline__ void load_tile(uint8_t* to, const int8_t* from, int first_row, int rows, int first,
                                          int bytes) {
#pragma unroll
  for (int part = 0; part < kTile * kChunks / kThreads; ++part) {
    const int i = part * kThreads + threadIdx.x;
    const int row = i / kChunks, chunk = i % kChunks, at = first + chunk * kChunk;
#ifdef BUG_GUARD
    const bool inside = first_row + row <= rows && at < bytes;
#else
    const bool inside = first_row + row < rows && at < bytes;
#endif
    copy_async(shared_address(to + place<kChunks>(row, chunk)),
               inside ? from + int64_t(first_row + row) * bytes + at : from, inside);
  }
}

// y [m, n] = a [m, k] b [n, k]^T in int32. Sparse: a holds two of four columns, [m, k / 2], and metadata [m, k / 32]
// eight groups' positions, four bits each.
template <bool kSparse>
__global__ void __launch_bounds__(kThreads)
    gemm(const int8_t* a, const uint32_t* metadata, const int8_t* b, int32_t* y, int m, int n, int k) {
  constexpr int kChunksA = kStep / kChunk / (kSparse ? 2 : 1), kChunksB = kStep / kChunk;
  constexpr int kBytesA = kTile * kChunksA * kChunk, kBytesB = kTile * kChunksB * kChunk;
  extern __shared__ __align__(128) uint8_t buffer[];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, in_group = lane % 4;
  const int row0 = blockIdx.y * kTile, column0 = blockIdx.x * kTile;
  const int warp_row = warp / 2 * 32, warp_column = warp % 2 * 32, steps = (k + kStep - 1) / kStep;
  const int bytes_a = kSparse ? k / 2 : k;

  const auto stage_a = [&](int step) { return buffer + step % kStages * (kBytesA + kBytesB); };
  const auto stage_b = [&](int step) { return stage_a(step) + kBytesA; };
  const auto start = [&](int step) {
    load_tile<kChunksA>(stage_a(step), a, row0, m, step * kChunksA * kChunk, bytes_a);
    load_tile<kChunksB>(stage_b(step), b, column0, n, step * kStep, k);
    asm volatile("cp.async.commit_group;" ::: "memory");
  };

  int sums[2][4][4] = {};
  if (steps > 0) start(0);
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) {
      start(step + 1);
#ifdef BUG_WAIT
      wait_for_copies<2>();
#else
      wait_for_copies<1>();
#endif
    } else {
      wait_for_copies<0>();
    }
#ifndef BUG_FIRST_BARRIER
    __syncthreads();
#endif
    uint32_t of_b[4][4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int row = warp_column + 8 * j + lane % 8;
#ifdef BUG_SWIZZLE
      load_matrices(of_b[j], shared_address(stage_b(step) + (row * kChunksB + lane / 8) * kChunk));
#else
      load_matrices(of_b[j], shared_address(stage_b(step) + place<kChunksB>(row, lane / 8)));
#endif
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = warp_row + 16 * i + lane % 16;
#pragma unroll
      for (int half = 0; half < kChunksA / 2; ++half) {
        uint32_t of_a[4];
        load_matrices(of_a, shared_address(stage_a(step) + place<kChunksA>(row, 2 * half + lane / 16)));
        if constexpr (kSparse) {
#ifdef BUG_METADATA
          const int which_row = in_group / 2, which_word = in_group % 2;
#else
          const int which_row = in_group % 2, which_word = in_group / 2;
#endif
          const int at_row = row0 + warp_row + 16 * i + group + 8 * which_row, at = step * 2 + which_word;
          const bool inside = at_row < m && at < k / 32;
          const uint32_t e = inside ? __ldg(metadata + int64_t(at_row) * (k / 32) + at) : 0x44444444u;
#pragma unroll
          for (int j = 0; j < 4; ++j) multiply(sums[i][j], of_a, of_b[j], e);
        } else {
#pragma unroll
          for (int j = 0; j < 4; ++j) multiply(sums[i][j], of_a, of_b[j][2 * half], of_b[j][2 * half + 1]);
        }
      }
    }
#ifndef BUG_LAST_BARRIER
    __syncthreads();  // before the next copies overwrite this stage
#endif
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = row0 + warp_row + 16 * i + group + e / 2 * 8;
        const int column = column0 + warp_column + 8 * j + 2 * in_group + e % 2;
#ifdef BUG_STORE
        if (row < m && column - e % 2 < n) y[int64_t(row) * n + column] = sums[i][j][e];
#else
        if (row < m && column < n) y[int64_t(row) * n + column] = sums[i][j][e];
#endif
      }
}

template <bool kSparse>
int launch(const int8_t* a, const uint32_t* metadata, const int8_t* b, int32_t* y, int m, int n, int k) {
  const int shared = kStages * kTile * (kStep / (kSparse ? 2 : 1) + kStep);
  if (const auto error = cudaFuncSetAttribute(reinterpret_cast<const void*>(gemm<kSparse>),
                                              cudaFuncAttributeMaxDynamicSharedMemorySize, shared))
    return error;
  const dim3 grid((n + kTile - 1) / kTile, (m + kTile - 1) / kTile);
  gemm<kSparse><<<grid, kThreads, shared>>>(a, metadata, b, y, m, n, k);
  return cudaGetLastError();
}

}  // namespace

extern "C" {
int dense(const int8_t* a, const int8_t* b, int32_t* y, int m, int n, int k) {
  return launch<false>(a, nullptr, b, y, m, n, k);
}
int sparse(const int8_t* a, const uint32_t* metadata, const int8_t* b, int32_t* y, int m, int n, int k) {
  return launch<true>(a, metadata, b, y, m, n, k);
}
}
