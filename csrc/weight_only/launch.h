// The weight-only products on a CUDA device: pointers in, kernels launched on a stream. No torch header. Nothing
// waits for the device, nothing is allocated; the caller checks cudaGetLastError. Empty results launch nothing.
//
// Made for few rows of x, where the floor is the bytes of the weight, read once:
//   INT4   N K / 2, and 4 N G of scales, as much again of zero points
//   2:4    N K / 2 values and N K / 8 bytes of indices: 53 % of dense float32, 56 % of dense 16-bit floats
// Four rows of x share a pass; those of more rows run side by side and find the weight in the cache. Sums are
// float32 in an order that depends on K and on alignment alone: a row's result is its own, and always the same.
#pragma once

#include <cuda_runtime_api.h>

#include "../core/epilogue.h"

namespace sparseq::weight_only::cuda {

// x [count, depth] and y [count, outputs] of one type, f32, f16 or bf16; rows next to each other.
struct Linear {
  const void* x = nullptr;
  Element type = Element::f32;
  int64_t count = 0, depth = 0, outputs = 0;
  const float* bias = nullptr;  // [outputs] or null
  void* y = nullptr;
};

// w = (q - zero) * scale for groups of depth / groups neighbours.
struct Int4Weight {
  const uint8_t* packed = nullptr;  // [outputs, ceil(depth / 2)], the low nibble first
  const float* scale = nullptr;     // [outputs, groups]
  const int32_t* zero = nullptr;    // [outputs, groups] or null
  int64_t groups = 1;
  bool is_signed = true;
};

// The canonical 2:4 form (sparse24/format.h); any byte of indices is safe.
struct SparseWeight {
  const void* values = nullptr;  // [outputs, 2 * ceil(depth / 4)]
  Element type = Element::f32;   // f32, f16 or bf16
  const uint8_t* indices = nullptr;
};

void int4_linear(const Linear& linear, const Int4Weight& weight, cudaStream_t stream);
void linear_24(const Linear& linear, const SparseWeight& weight, cudaStream_t stream);

}  // namespace sparseq::weight_only::cuda
