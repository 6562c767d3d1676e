// Every op of sparseq, one line each. Kernels: <family>/cpu.cpp and <family>/cuda.cu; fake kernels and
// autograd: sparseq/ops; definitions: sparseq/reference.
#include <torch/csrc/stable/library.h>

// What the INT8 products take beside their operands.
#define SPARSEQ_FUSED                                                                                           \
  "Tensor? x_scale=None, int x_min=-128, int x_max=127, str activation='none', Tensor? residual=None, Tensor? " \
  "residual_scale=None, Tensor? residual_zero=None, ScalarType? dtype=None, Tensor? y_scale=None, Tensor? "     \
  "y_zero=None, "                                                                                               \
  "int y_min=-128, int y_max=127"

STABLE_TORCH_LIBRARY(sparseq, m) {
  // affine
  m.def(
      "quantize(Tensor x, Tensor scale, Tensor? zero_point, int quant_min, int quant_max, int? axis, int? group_size) "
      "-> Tensor");
  m.def(
      "dequantize(Tensor q, Tensor scale, Tensor? zero_point, int? axis, int? group_size, ScalarType dtype) -> Tensor");
  m.def(
      "fake_quantize(Tensor x, Tensor scale, Tensor? zero_point, int quant_min, int quant_max, int? axis, int? "
      "group_size, float grad_factor) -> Tensor");
  m.def(
      "fake_quantize_backward(Tensor grad, Tensor x, Tensor scale, Tensor? zero_point, int quant_min, int quant_max, "
      "int? axis, int? group_size) -> Tensor");
  m.def(
      "fake_quantize_learned_backward(Tensor grad, Tensor x, Tensor scale, Tensor? zero_point, int quant_min, int "
      "quant_max, int? axis, int? group_size, float grad_factor) -> (Tensor, Tensor, Tensor)");
  m.def(
      "fake_quantize_observed(Tensor x, Tensor scale, Tensor? zero_point, int quant_min, int quant_max, int? axis, "
      "int? "
      "group_size, float grad_factor) -> (Tensor y, Tensor low, Tensor high)");
  m.def("minmax(Tensor x, int? axis, int? group_size) -> (Tensor, Tensor)");
  m.def("histogram(Tensor x, Tensor limit, int bins, int? axis, int? group_size) -> Tensor");
  m.def("pack_int4(Tensor q) -> Tensor");
  m.def("unpack_int4(Tensor packed, int columns, bool signed) -> Tensor");
  // gemm
  m.def(
      "int8_linear(Tensor x, Tensor weight, Tensor scale, Tensor? x_zero, Tensor? weight_zero, Tensor? bias, Tensor? "
      "tiles=None, *, " SPARSEQ_FUSED ") -> Tensor");
  m.def(
      "int8_conv2d(Tensor x, Tensor weight, Tensor scale, Tensor? x_zero, Tensor? weight_zero, Tensor? bias, int[] "
      "stride, int[] padding, int[] dilation, int groups, Tensor? tiles=None, *, " SPARSEQ_FUSED ") -> Tensor");
  m.def("int8_tiles(Tensor weight, int groups, str kind=\"auto\") -> Tensor");
  // network
  m.def("network(str program, Tensor[] constants, Tensor[] inputs) -> Tensor[]");
  // weight_only
  m.def(
      "int4_linear(Tensor x, Tensor packed, Tensor scale, Tensor? zero_point, Tensor? bias, bool signed=True) -> "
      "Tensor");
  m.def("linear_24(Tensor x, Tensor values, Tensor indices, Tensor? bias, Tensor? tiles=None) -> Tensor");
  m.def("tiles_24(Tensor values, Tensor indices, int columns) -> Tensor");
  // sparse24
  m.def("mask_24(Tensor weight) -> Tensor");
  m.def("pack_24(Tensor weight) -> (Tensor values, Tensor indices)");
  m.def("unpack_24(Tensor values, Tensor indices, int columns) -> Tensor");
}
