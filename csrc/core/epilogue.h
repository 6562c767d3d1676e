// What happens to an int32 accumulator before it leaves the kernel. One type for linear, convolution,
// dense and 2:4. No ISA code here, no torch: a plain description that every kernel table reads.
#pragma once
#include <cstdint>

namespace sparseq {

// In the order of sparseq.program.ACTIVATIONS; float32 steps as sparseq/reference/functions.py.
enum class Activation : int32_t { none, relu, relu6, hardswish, hardsigmoid, sigmoid, silu, tanh, gelu, gelu_tanh };
inline constexpr const char* kActivations[] = {"none",    "relu", "relu6", "hardswish", "hardsigmoid",
                                               "sigmoid", "silu", "tanh",  "gelu",      "gelu_tanh"};
enum class Element : int32_t { none, f32, bf16, u8, s8, f16 };

// y = (float(acc - zero[m] * weight_sum[n]) * multiplier[n]) * row_scale[m] + bias[n]
// y = activation(y + residual)
// f32, f16, bf16: stored as y.   u8, s8: clamp(rne(y / scale) + zero_point, low, high), NaN -> zero_point.
// Every step is one float32 operation, in this order, on every ISA; nothing is contracted to an FMA (functions.h names
// those of the activations).
struct Epilogue {
  const float* multiplier = nullptr;  // [N] input scale * weight scale (weight scale alone with row_scale)
  const float* bias = nullptr;        // [N] or null
  int32_t zero = 0;                   // zero point of the prepared (u8) input: +128 for a signed input
  const int32_t* row_zero = nullptr;  // [M] replaces zero: dynamic per-row quantisation
  const float* row_scale = nullptr;   // [M] or null
  Activation activation = Activation::none;

  Element residual_type = Element::none;
  const void* residual = nullptr;  // [M, N] rows residual_stride elements apart
  int64_t residual_stride = 0;
  float residual_scale = 1.0f;  // u8, s8: (r - zero_point) * scale
  int32_t residual_zero_point = 0;

  Element output_type = Element::f32;
  void* output = nullptr;  // [M, N] rows output_stride elements apart
  int64_t output_stride = 0;
  float output_scale = 1.0f;  // pass 1 when multiplier and bias already hold 1 / scale
  int32_t output_zero_point = 0;
  int32_t output_low = -128;  // [-127, 127] for symmetric s8
  int32_t output_high = 127;
};

}  // namespace sparseq
