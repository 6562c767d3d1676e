// The INT8 and 2:4 products on a CUDA device: pointers in, kernels launched on a stream. No torch header. Nothing
// waits for the device, nothing is allocated; scales and zero points stay on the device. The caller checks
// cudaGetLastError. Empty tensors launch nothing.
#pragma once

#include <cuda_runtime_api.h>

#include "../core/epilogue.h"
#include "cuda_tiles.h"

namespace sparseq::gemm::cuda {

// core/epilogue.h on a device: its numbers as pointers, so that nothing waits for them.
//   y = float(sum - zero * weight_sum[n]) * (scale[n] * x_scale) * row_scale[m] + bias[n] + residual
struct Finish {
  const int32_t* weight_sum = nullptr;  // [N] or null: the zero point is 0, or part of the sum already
  const float* scale = nullptr;         // [N]; unused by products of floats
  const float* x_scale = nullptr;       // one value or null
  const int32_t* x_zero = nullptr;      // one value or null
  const float* row_scale = nullptr;     // [M] or null
  const int32_t* row_zero = nullptr;    // [M] or null; replaces x_zero
  const float* bias = nullptr;          // [N] or null
  Activation activation = Activation::none;

  Element residual_type = Element::none;
  const void* residual = nullptr;  // rows residual_stride elements apart
  int64_t residual_stride = 0;
  const float* residual_scale = nullptr;   // one value; u8 and s8
  const int32_t* residual_zero = nullptr;  // one value or null

  Element output_type = Element::f32;
  void* output = nullptr;  // rows output_stride elements apart
  int64_t output_stride = 0;
  const float* y_scale = nullptr;   // one value; u8 and s8
  const int32_t* y_zero = nullptr;  // one value or null
  float output_low = -128, output_high = 127;

  bool vector = false;  // set by the launchers: rows of 8 outputs can be read and written as vectors
};

// Rows of activations, or NHWC images: pixel p is at data + p * stride, the channels of all groups.
struct Rows {
  const void* data = nullptr;
  bool is_signed = false;  // int8, else uint8; nothing to products of floats
  int64_t stride = 0;      // bytes from row to row, or from pixel to pixel
  int64_t count = 0;       // rows, or output pixels
  const ConvShape* conv = nullptr;
  const int32_t* zero = nullptr;  // one value or null: what lies outside of an image
};

// How a product is cut: for a device of so many multiprocessors, from shapes alone.
struct Cut {
  bool large = false;     // tiles of 128 x 64 or 128, else 128 x 32
  int64_t splits = 1;     // of the sum; their partial sums are added up by a second kernel
  int64_t workspace = 0;  // bytes of device memory that a caller provides
};
Cut cut_product(const CudaTiling& tiling, int64_t rows, int multiprocessors);
Cut cut_into(const CudaTiling& tiling, int64_t rows, bool large, int64_t splits);

// y = x @ w.T for int8 weights, dense or 2:4, packed as cuda_tiles.h says. finish.weight_sum is set here.
void int8_product(const CudaTiling& tiling, const uint8_t* tiles, const Rows& x, Finish finish, const Cut& cut,
                  void* workspace, cudaStream_t stream);

// The same for 2:4 weights of type f16 or bf16, summed in float32.
void float_product(Element type, const CudaTiling& tiling, const uint8_t* tiles, const Rows& x, Finish finish,
                   const Cut& cut, void* workspace, cudaStream_t stream);

// Any bytes and zero points, plain loops: sum (x - x_zero) * (w - weight_zero). Weight element (output, tap,
// channel) is at o * strides[0] + t * strides[1] + c * strides[2].
struct PlainWeight {
  const uint8_t* data = nullptr;
  bool is_signed = true;
  int64_t strides[3] = {0, 0, 0};
  const int32_t* zero = nullptr;  // [outputs] or null
};
void direct_product(const WeightShape& shape, const PlainWeight& weight, const Rows& x, Finish finish,
                    cudaStream_t stream);

// int8 [outputs, in_channels, taps] -> tiles. TileKind::sparse24 must be 2:4 (pack_24 tells).
void pack_tiles(const CudaTiling& tiling, const int8_t* weight, uint8_t* tiles, cudaStream_t stream);
// The canonical 2:4 form (sparse24/format.h) of elements of 1 or 2 bytes -> tiles; any index is safe.
void pack_tiles_24(const CudaTiling& tiling, const void* values, const uint8_t* indices, uint8_t* tiles,
                   cudaStream_t stream);

// f32, f16 or bf16 rows -> int8 or uint8 rows, each on its own grid over its range and 0:
// low < 0: s = absmax / high, zero point 0; else s = (max - min) / (high - low), zero = rne(low - min / s).
struct RowGrid {
  const void* x = nullptr;
  Element type = Element::f32;
  int64_t rows = 0, columns = 0, stride = 0;  // stride in elements
  int32_t low = -128, high = 127;
  uint8_t* q = nullptr;
  int64_t q_stride = 0;     // >= columns; the bytes between are set to 0
  float* scale = nullptr;   // [rows]
  int32_t* zero = nullptr;  // [rows]; null where low < 0
};
void quantize_rows(const RowGrid& grid, cudaStream_t stream);

}  // namespace sparseq::gemm::cuda
