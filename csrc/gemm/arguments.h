// The arguments of the INT8 products, checked, for both of their paths.
#pragma once

#include <iterator>

#include "../core/tensors.h"
#include "gemm.h"
#include "general.h"

namespace sparseq::gemm {

// Beyond this many products |x - zx| * |w - zw| <= 255 * 255 the sum may leave int32.
constexpr int64_t kMaxDepth = 33025;

inline Element element_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return Element::f32;
    case ScalarType::Half: return Element::f16;
    case ScalarType::BFloat16: return Element::bf16;
    case ScalarType::Byte: return Element::u8;
    case ScalarType::Char: return Element::s8;
    default: return Element::none;
  }
}
inline bool is_byte(Element type) { return type == Element::u8 || type == Element::s8; }
inline int64_t size_of(Element type) { return type == Element::f32 ? 4 : is_byte(type) ? 1 : 2; }

// Integers from low to high, within int8 where low is negative, else within uint8.
struct Limits {
  int32_t low = -128, high = 127;
  Limits() = default;
  explicit Limits(Element byte) : low(byte == Element::s8 ? -128 : 0), high(low + 255) {}
  Limits(const char* op, const char* argument, int64_t least, int64_t most) : low(int32_t(least)), high(int32_t(most)) {
    const int64_t floor = least < 0 ? -128 : 0;
    STD_TORCH_CHECK(floor <= least && least < most && most <= floor + 255, op, ": ", argument, "_min and ", argument,
                    "_max must lie in [-128, 127] or [0, 255], the first less than the second, got ", least, " and ",
                    most);
  }
};

// An optional vector of `count` values of one dtype, contiguous, with its pointer.
template <class T>
struct Vector {
  std::optional<Tensor> held;
  const T* data = nullptr;
  Vector(const char* op, const char* argument, const std::optional<Tensor>& t, ScalarType type, int64_t count) {
    if (!t) return;
    STD_TORCH_CHECK(t->scalar_type() == type && t->numel() == count, op, ": ", argument, " must hold ", count, " ",
                    dtype_name(type), " values, got ", t->numel(), " of ", dtype_name(t->scalar_type()));
    held = made_contiguous(*t);
    data = static_cast<const T*>(held->const_data_ptr());
  }
  T first_or(T missing) const { return data ? data[0] : missing; }
};

// A zero point outside of its range could leave int16 or int32; a missing one is 0.
inline void check_zeros(const char* op, const char* argument, const Vector<int32_t>& zeros, Limits limits) {
  const int32_t none = 0;
  const int32_t* value = zeros.data ? zeros.data : &none;
  for (int64_t i = 0; i < (zeros.data ? zeros.held->numel() : 1); ++i)
    STD_TORCH_CHECK(value[i] >= limits.low && value[i] <= limits.high, op, ": ", argument, " must lie in [", limits.low,
                    ", ", limits.high, "], got ", value[i]);
}

// The keyword arguments of both ops, as they come.
struct Options {
  std::optional<Tensor> x_scale;
  int64_t x_min, x_max;
  std::string activation;
  std::optional<Tensor> residual, residual_scale, residual_zero;
  std::optional<ScalarType> dtype;
  std::optional<Tensor> y_scale, y_zero;
  int64_t y_min, y_max;
};

inline Activation activation_of(const char* op, const std::string& name) {
  for (size_t i = 0; i < std::size(kActivations); ++i)
    if (name == kActivations[i]) return Activation(i);
  STD_TORCH_CHECK(false, op,
                  ": activation must be none, relu, relu6, hardswish, hardsigmoid, sigmoid, silu, tanh, gelu or "
                  "gelu_tanh, got ",
                  name);
  return Activation::none;
}

struct Weight {
  Tensor dense;
  int64_t rows, depth;
  bool is_signed;
};

// Everything but the shapes of x and y, checked: shared by linear and convolution.
struct Arguments {
  Weight weight;
  Vector<float> scale, bias, x_scale, residual_scale, y_scale;
  Vector<int32_t> weight_zero, x_zero, residual_zero, y_zero;
  Element x_type, residual_type, y_type;
  ScalarType dtype;
  Activation activation;
  Limits x_limits, y_limits;  // of y only where it is a byte
  bool dynamic;               // x is quantised row by row

  Arguments(const char* op, const Tensor& x, const Tensor& w, const Tensor& scale_,
            const std::optional<Tensor>& x_zero_, const std::optional<Tensor>& weight_zero_,
            const std::optional<Tensor>& bias_, const Options& o)
      : weight{made_contiguous(w), w.size(0), w.size(0) ? w.numel() / w.size(0) : 0,
               w.scalar_type() == ScalarType::Char},
        scale(op, "scale", scale_, ScalarType::Float, w.size(0)),
        bias(op, "bias", bias_, ScalarType::Float, w.size(0)),
        x_scale(op, "x_scale", o.x_scale, ScalarType::Float, 1),
        residual_scale(op, "residual_scale", o.residual_scale, ScalarType::Float, 1),
        y_scale(op, "y_scale", o.y_scale, ScalarType::Float, 1),
        weight_zero(op, "weight_zero", weight_zero_, ScalarType::Int, w.size(0)),
        x_zero(op, "x_zero", x_zero_, ScalarType::Int, 1),
        residual_zero(op, "residual_zero", o.residual_zero, ScalarType::Int, 1),
        y_zero(op, "y_zero", o.y_zero, ScalarType::Int, 1),
        x_type(element_of(x.scalar_type())),
        residual_type(o.residual ? element_of(o.residual->scalar_type()) : Element::none),
        dtype(o.dtype.value_or(is_byte(x_type) ? ScalarType::Float : x.scalar_type())),
        activation(activation_of(op, o.activation)),
        x_limits(is_byte(x_type) ? Limits(x_type) : Limits(op, "x", o.x_min, o.x_max)),
        dynamic(!is_byte(x_type) && !x_scale.data) {
    STD_TORCH_CHECK(weight.depth <= kMaxDepth, op, ": weight must have at most ", kMaxDepth,
                    " inputs for an exact int32 sum, got ", weight.depth);
    if (weight_zero.data) check_zeros(op, "weight_zero", weight_zero, Limits(element_of(w.scalar_type())));
    STD_TORCH_CHECK(!dynamic || !x_zero.data, op, ": x_zero must be None where each row has its own, got one");
    if (!dynamic) check_zeros(op, "x_zero", x_zero, x_limits);
    y_type = element_of(dtype);
    STD_TORCH_CHECK(y_type != Element::none, op, ": dtype must be float32, float16, bfloat16, int8 or uint8, got ",
                    dtype_name(dtype));
    if (is_byte(y_type)) {
      y_limits = Limits(op, "y", o.y_min, o.y_max);
      STD_TORCH_CHECK((y_limits.low < 0) == (y_type == Element::s8), op, ": y_min must be ",
                      y_type == Element::s8 ? "negative for int8" : "at least 0 for uint8", ", got ", o.y_min);
      STD_TORCH_CHECK(y_scale.data, op, ": y_scale must be given for ", dtype_name(dtype), ", got none");
      check_zeros(op, "y_zero", y_zero, y_limits);
    }
    if (!o.residual) return;
    STD_TORCH_CHECK(residual_type != Element::none, op,
                    ": residual must be float32, float16, bfloat16, int8 or uint8, got ",
                    dtype_name(o.residual->scalar_type()));
    if (!is_byte(residual_type)) return;
    STD_TORCH_CHECK(residual_scale.data, op, ": residual_scale must be given for ",
                    dtype_name(o.residual->scalar_type()), ", got none");
    check_zeros(op, "residual_zero", residual_zero, Limits(residual_type));
  }
};

inline void check_types(const char* op, const Tensor& x, const Tensor& weight) {
  STD_TORCH_CHECK(element_of(x.scalar_type()) != Element::none, op,
                  ": x must be int8, uint8, float32, float16 or bfloat16, got ", dtype_name(x.scalar_type()));
  STD_TORCH_CHECK(is_byte(element_of(weight.scalar_type())), op, ": weight must be int8 or uint8, got ",
                  dtype_name(weight.scalar_type()));
}

// A linear layer is a convolution over images of one pixel.
struct Window {
  int64_t batch, channels, height, width;  // channels: of one group
  int64_t rows, columns;                   // of the output
  int64_t kernel_h, kernel_w, groups;
  int64_t stride[2], padding[2], dilation[2];
  int64_t pixels() const { return batch * rows * columns; }
  bool pointwise() const {  // output pixel m reads input pixel m
    return kernel_h == 1 && kernel_w == 1 && stride[0] == 1 && stride[1] == 1 && padding[0] == 0 && padding[1] == 0;
  }
};

// How many work items a thread should get at least, for items of so many products.
inline int64_t grain(int64_t products) { return std::max<int64_t>(1, 262144 / std::max<int64_t>(1, products)); }

// Any bytes and zero points, plain loops.
void general_product(const Arguments& a, const Window& w, const Input& input, const Epilogue& epilogue);

// Signed weights without zero points, by tiles; `tiles` as int8_tiles made them, or made here for this call.
void tiled_product(const Arguments& a, const std::optional<Tensor>& tiles, const Window& w, const Input& input,
                   const Epilogue& epilogue);

}  // namespace sparseq::gemm
