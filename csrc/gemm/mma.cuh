// The tensor-core instructions of sm_80, which every later architecture has too: copies to shared memory that
// nobody waits for, 8x8 matrices out of it, and products, dense and 2:4. No torch header.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../core/half.h"

namespace sparseq::gemm {
namespace {

__device__ __forceinline__ uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

// `bytes` of 16 (or 4) at from, which is aligned to that; zeros for the rest. Nothing is read where bytes is 0.
__device__ __forceinline__ void copy_16(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copy_4(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void close_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int kOpen>  // until at most so many of the closed groups are under way
__device__ __forceinline__ void await_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kOpen) : "memory");
}
__device__ __forceinline__ void store_16(uint32_t to, uint32_t word) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};\n" ::"r"(to), "r"(word) : "memory");
}
__device__ __forceinline__ void store_4(uint32_t to, uint32_t word) {
  asm volatile("st.shared.b32 [%0], %1;\n" ::"r"(to), "r"(word) : "memory");
}
__device__ __forceinline__ void load_16(uint32_t (&to)[4], uint32_t from) {
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

// Four 8x8 matrices of 16-bit elements; lane l names row l % 8 of matrix l / 8, and gets of each matrix the
// elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4: four bytes.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row)
               : "memory");
}

// What a tile of 16 outputs x 8 rows of activations adds up over one step, as a product's trait. All of them have
// the same shape in bytes: the weights are the A operand (16 x 32 bytes), the activations B (8 rows x kBytes).
// Lane l = 4 g + t holds, of the sums d: outputs g (d[0], d[1]) and g + 8 (d[2], d[3]), rows 2 t and 2 t + 1.

template <bool kSignedRows>
struct DenseInt8 {
  using Sum = int32_t;
  static constexpr int kElement = 1, kWords = 0;  // bytes of an element; words of metadata of a lane, see packed.cuh
  static constexpr bool kSparse = false;
  static constexpr int kStepBytes = 32;  // of a row of activations

  template <int kStep>
  static __device__ __forceinline__ void add(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                                             const uint32_t*) {
    if constexpr (kSignedRows)
      asm volatile(
          "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
          : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[int64_t(2 * kStep)]), "r"(b[int64_t(2 * kStep) + 1]));
    else
      asm volatile(
          "mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
          : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[int64_t(2 * kStep)]), "r"(b[int64_t(2 * kStep) + 1]));
  }
};

#define SPARSEQ_MMA_SP(SHAPE, KIND, SELECTOR)                                                        \
  asm volatile("mma.sp::ordered_metadata.sync.aligned." SHAPE ".row.col." KIND                       \
               " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, " SELECTOR ";\n" \
               : SPARSEQ_SUM(d[0]), SPARSEQ_SUM(d[1]), SPARSEQ_SUM(d[2]), SPARSEQ_SUM(d[3])          \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(word[0]))

// Metadata: 4 bits for 4 inputs. Of a step's 64, lane 4 g + t holds the word of output g + 8 (t % 2), inputs
// 32 (t / 2) and the 31 after it.
template <bool kSignedRows>
struct SparseInt8 {
  using Sum = int32_t;
  static constexpr int kElement = 1, kWords = 2;  // one for each of the two steps of a tile
  static constexpr bool kSparse = true;
  static constexpr int kStepBytes = 64;

  template <int kStep>
  static __device__ __forceinline__ void add(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                                             const uint32_t* words) {
    const uint32_t* word = words + kStep;
#define SPARSEQ_SUM(x) "+r"(x)
    if constexpr (kSignedRows)
      SPARSEQ_MMA_SP("m16n8k64", "s32.s8.s8.s32", "0x0");
    else
      SPARSEQ_MMA_SP("m16n8k64", "s32.s8.u8.s32", "0x0");
#undef SPARSEQ_SUM
  }
};

// T: Half or BFloat16. The selector says which pair of each four lanes holds a step's metadata, t / 2 = step:
// of outputs g (low half of the word) and g + 8 (high half), inputs 16 (t % 2) and the 15 after it.
template <class T>
struct SparseFloat {
  using Sum = float;
  static constexpr int kElement = 2, kWords = 1;
  static constexpr bool kSparse = true;
  static constexpr int kStepBytes = 64;

  template <int kStep>
  static __device__ __forceinline__ void add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                                             const uint32_t* word) {
#define SPARSEQ_SUM(x) "+f"(x)
    if constexpr (std::is_same_v<T, Half>) {
      if constexpr (kStep == 0)
        SPARSEQ_MMA_SP("m16n8k32", "f32.f16.f16.f32", "0x0");
      else
        SPARSEQ_MMA_SP("m16n8k32", "f32.f16.f16.f32", "0x1");
    } else {
      if constexpr (kStep == 0)
        SPARSEQ_MMA_SP("m16n8k32", "f32.bf16.bf16.f32", "0x0");
      else
        SPARSEQ_MMA_SP("m16n8k32", "f32.bf16.bf16.f32", "0x1");
    }
#undef SPARSEQ_SUM
  }
};

#undef SPARSEQ_MMA_SP

}  // namespace
}  // namespace sparseq::gemm
