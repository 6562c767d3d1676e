// The arguments of the INT8 products, checked, for both of their paths.
#pragma once

#include "../core/tensors.h"
#include "general.h"

namespace sparseq::gemm {

// Beyond this many products |x - zx| * |w - zw| <= 255 * 255 the sum may leave int32.
constexpr int64_t kMaxDepth = 33025;

inline bool is_byte(const Tensor& t) {
  return t.scalar_type() == ScalarType::Char || t.scalar_type() == ScalarType::Byte;
}

inline void check_bytes(const char* op, const char* argument, const Tensor& t) {
  STD_TORCH_CHECK(is_byte(t), op, ": ", argument, " must be int8 or uint8, got ", dtype_name(t.scalar_type()));
}

// An optional vector of `count` values of one dtype, contiguous, with its pointer.
template <class T>
struct Vector {
  std::optional<Tensor> held;
  const T* data = nullptr;
  Vector(const char* op, const char* argument, const std::optional<Tensor>& t, ScalarType type, int64_t count) {
    if (!t) return;
    STD_TORCH_CHECK(t->scalar_type() == type && t->numel() == count, op, ": ", argument, " must hold ", count, " ",
                    dtype_name(type), " values, got ", t->numel(), " of ", dtype_name(t->scalar_type()));
    held = torch::stable::contiguous(*t);
    data = static_cast<const T*>(held->const_data_ptr());
  }
};

struct Weight {
  Tensor dense;
  int64_t rows, depth;
  bool is_signed;
};

// A zero point outside of its byte's range could leave int16 or int32.
inline void check_zeros(const char* op, const char* argument, const Vector<int32_t>& zeros, const Tensor& of) {
  const int32_t low = of.scalar_type() == ScalarType::Char ? -128 : 0;
  for (int64_t i = 0; zeros.data && i < zeros.held->numel(); ++i)
    STD_TORCH_CHECK(zeros.data[i] >= low && zeros.data[i] <= low + 255, op, ": ", argument, " must lie in [", low, ", ",
                    low + 255, "], got ", zeros.data[i]);
}

// Everything but x and y, checked: shared by linear and convolution.
struct Arguments {
  Weight weight;
  Vector<float> scale, bias;
  Vector<int32_t> weight_zero, x_zero;

  Arguments(const char* op, const Tensor& x, const Tensor& w, const Tensor& scale_,
            const std::optional<Tensor>& x_zero_, const std::optional<Tensor>& weight_zero_,
            const std::optional<Tensor>& bias_)
      : weight{torch::stable::contiguous(w), w.size(0), w.size(0) ? w.numel() / w.size(0) : 0,
               w.scalar_type() == ScalarType::Char},
        scale(op, "scale", scale_, ScalarType::Float, w.size(0)),
        bias(op, "bias", bias_, ScalarType::Float, w.size(0)),
        weight_zero(op, "weight_zero", weight_zero_, ScalarType::Int, w.size(0)),
        x_zero(op, "x_zero", x_zero_, ScalarType::Int, 1) {
    STD_TORCH_CHECK(weight.depth <= kMaxDepth, op, ": weight must have at most ", kMaxDepth,
                    " inputs for an exact int32 sum, got ", weight.depth);
    check_zeros(op, "x_zero", x_zero, x);
    check_zeros(op, "weight_zero", weight_zero, w);
  }

  int32_t zero() const { return x_zero.data ? x_zero.data[0] : 0; }
};

template <class F>
void with_bytes(const Tensor& x, F f) {
  if (x.scalar_type() == ScalarType::Char)
    f(static_cast<const int8_t*>(x.const_data_ptr()));
  else
    f(static_cast<const uint8_t*>(x.const_data_ptr()));
}

struct Window {
  int64_t batch, channels, height, width;  // channels: of one group
  int64_t rows, columns;                   // of the output
  int64_t kernel_h, kernel_w, groups;
  int64_t stride[2], padding[2], dilation[2];
  int64_t pixels() const { return batch * rows * columns; }
};

// How many work items a thread should get at least, for items of so many products.
inline int64_t grain(int64_t products) { return std::max<int64_t>(1, 262144 / std::max<int64_t>(1, products)); }

// Any bytes and zero points, plain loops.
void general_linear(const Arguments& a, const Tensor& x, int64_t rows, float* y);
void general_conv2d(const Arguments& a, const Window& w, const Tensor& x, float* y);

// Signed weights without zero points, by tiles; `tiles` as int8_tiles made them, or made here for this call.
void tiled_linear(const Arguments& a, const std::optional<Tensor>& tiles, const Tensor& x, int64_t rows, float* y);
void tiled_conv2d(const Arguments& a, const std::optional<Tensor>& tiles, const Window& w, const Tensor& x, float* y);

// OHWI, the order that tiles are made from.
std::vector<int8_t> channels_inside(const Tensor& weight);

}  // namespace sparseq::gemm
