// The affine ops on a CUDA device: pointers in, kernels launched on a stream. No torch header. Nothing waits
// for the device, nothing is allocated; the caller checks cudaGetLastError. Empty tensors launch nothing.
#pragma once

#include <cuda_runtime_api.h>

#include "affine.h"

namespace sparseq::affine::cuda {

// How a reduction is cut, from the layout alone: neither the device nor the launch changes the result.
struct Cut {
  explicit Cut(const Layout& layout);
  Layout layout;
  bool by_columns;
  int64_t parts;  // by runs: segments of a run; by columns: blocks of rows
  int64_t rows;   // by columns: rows of a block
  int64_t slots;  // pairs of partial results, the scratch memory a caller provides
};

void quantize(DType type, const Problem& problem, const void* x, uint8_t* q, cudaStream_t stream);
void dequantize(DType type, bool is_signed, const Problem& problem, const void* q, void* y, cudaStream_t stream);
void fake_quantize(DType type, const Problem& problem, const void* x, void* y, cudaStream_t stream);
void backward(DType type, const Problem& problem, const void* grad, const void* x, void* grad_x, cudaStream_t stream);

// grad_scale and grad_zero have `channels` elements: the layout's channels, or any number where it is empty.
void learned_backward(DType type, const Problem& problem, const Cut& cut, const void* grad, const void* x, void* grad_x,
                      double grad_factor, Pair* partials, int64_t channels, float* grad_scale, float* grad_zero,
                      cudaStream_t stream);
void minmax(DType type, const Cut& cut, const void* x, Pair* partials, float* low, float* high, cudaStream_t stream);
// fake_quantize and minmax at once.
void observed(DType type, const Problem& problem, const Cut& cut, const void* x, void* y, Pair* partials, float* low,
              float* high, cudaStream_t stream);

// counts: [channels, bins]; channels as for learned_backward, a limit each. bins: a power of two.
void histogram(DType type, const Layout& layout, const void* x, const float* limit, int64_t bins, int64_t channels,
               int64_t* counts, cudaStream_t stream);

// Rows of `columns` values, each packed into ceil(columns / 2) bytes.
void pack_int4(const uint8_t* q, uint8_t* packed, int64_t rows, int64_t columns, cudaStream_t stream);
void unpack_int4(const uint8_t* packed, uint8_t* q, int64_t rows, int64_t columns, bool is_signed, cudaStream_t stream);

}  // namespace sparseq::affine::cuda
