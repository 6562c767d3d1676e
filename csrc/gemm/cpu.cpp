// INT8 linear and convolution on the CPU, float32 out: y = acc * scale + bias. Plain and exact.
#include "../core/tensors.h"
#include "gemm.h"

namespace sparseq::gemm {

const Kernels& kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa != Isa::scalar) return kernels_avx2();
#endif
  (void)isa;
  return kernels_scalar();
}

namespace {

bool is_byte(const Tensor& t) {
  return t.scalar_type() == ScalarType::Char || t.scalar_type() == ScalarType::Byte;
}

void check_bytes(const char* op, const char* argument, const Tensor& t) {
  STD_TORCH_CHECK(is_byte(t), op, ": ", argument, " must be int8 or uint8, got ", dtype_name(t.scalar_type()));
}

// An optional vector of `count` values of one dtype, contiguous, with its pointer.
template <class T>
struct Vector {
  std::optional<Tensor> held;
  const T* data = nullptr;
  Vector(const char* op, const char* argument, const std::optional<Tensor>& t, ScalarType type, int64_t count) {
    if (!t) return;
    STD_TORCH_CHECK(t->scalar_type() == type && t->numel() == count, op, ": ", argument, " must hold ", count,
                    " ", dtype_name(type), " values, got ", t->numel(), " of ", dtype_name(t->scalar_type()));
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
void check_zeros(const char* op, const char* argument, const Vector<int32_t>& zeros, const Tensor& of) {
  const int32_t low = of.scalar_type() == ScalarType::Char ? -128 : 0;
  for (int64_t i = 0; zeros.data && i < zeros.held->numel(); ++i)
    STD_TORCH_CHECK(zeros.data[i] >= low && zeros.data[i] <= low + 255, op, ": ", argument, " must lie in [", low,
                    ", ", low + 255, "], got ", zeros.data[i]);
}

// Everything but where x comes from and where y goes: shared by linear and convolution.
struct Affine {
  Weight weight;
  Vector<float> scale, bias;
  Vector<int32_t> weight_zero, x_zero;

  Affine(const char* op, const Tensor& x, const Tensor& w, const Tensor& scale_, const std::optional<Tensor>& x_zero_,
         const std::optional<Tensor>& weight_zero_, const std::optional<Tensor>& bias_)
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

  // y[n] for rows [first, first + count) from one patch of depth values, relative to the zero point
  void row(const int16_t* x, int64_t first, int64_t count, int32_t* acc, float* y, int64_t y_stride) const {
    const Kernels& kernel = kernels(active_isa());
    const int64_t k = weight.depth;
    const void* w = static_cast<const uint8_t*>(weight.dense.const_data_ptr()) + first * k;
    if (weight.is_signed)
      kernel.rows_s8(x, static_cast<const int8_t*>(w), count, k, acc);
    else
      kernel.rows_u8(x, static_cast<const uint8_t*>(w), count, k, acc);
    int32_t sum = 0;
    if (weight_zero.data)
      for (int64_t i = 0; i < k; ++i) sum += x[i];
    for (int64_t n = 0; n < count; ++n) {
      const int32_t zero = weight_zero.data ? weight_zero.data[first + n] : 0;
      const float product = float(acc[n] - zero * sum) * scale.data[first + n];
      y[n * y_stride] = bias.data ? product + bias.data[first + n] : product;
    }
  }
};

template <class F>
void with_bytes(const Tensor& x, F f) {
  if (x.scalar_type() == ScalarType::Char)
    f(static_cast<const int8_t*>(x.const_data_ptr()));
  else
    f(static_cast<const uint8_t*>(x.const_data_ptr()));
}

int64_t grain(int64_t products) { return std::max<int64_t>(1, 262144 / std::max<int64_t>(1, products)); }

Tensor int8_linear_cpu(const Tensor& x, const Tensor& weight, const Tensor& scale, std::optional<Tensor> x_zero,
                       std::optional<Tensor> weight_zero, std::optional<Tensor> bias) {
  const char* op = "int8_linear";
  check_bytes(op, "x", x);
  check_bytes(op, "weight", weight);
  STD_TORCH_CHECK(weight.dim() == 2 && x.dim() >= 1 && x.size(x.dim() - 1) == weight.size(1), op,
                  ": x must be [..., K] and weight [N, K], got ", shape_of(x), " and ", shape_of(weight));
  const Affine a(op, x, weight, scale, x_zero, weight_zero, bias);
  const int64_t n = a.weight.rows, k = a.weight.depth;
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = n;
  int64_t rows = 1;
  for (size_t d = 0; d + 1 < shape.size(); ++d) rows *= shape[d];
  const Tensor dense = torch::stable::contiguous(x);
  Tensor y = torch::stable::empty(shape, ScalarType::Float);
  float* out = static_cast<float*>(y.mutable_data_ptr());
  with_bytes(dense, [&](const auto* from) {
    torch::stable::parallel_for(0, rows, grain(n * k), [&](int64_t b, int64_t e) {
      std::vector<int16_t> patch(k);
      std::vector<int32_t> acc(n);
      for (int64_t r = b; r < e; ++r) {
        for (int64_t i = 0; i < k; ++i) patch[i] = int16_t(from[r * k + i] - a.zero());
        a.row(patch.data(), 0, n, acc.data(), out + r * n, 1);
      }
    });
  });
  return y;
}

struct Window {
  int64_t batch, channels, height, width, rows, columns, kernel_h, kernel_w;  // rows x columns: the output
  int64_t stride[2], padding[2], dilation[2];
};

// The patch under one output position, in the weight's order (channel, tap row, tap column), relative to
// the zero point: padding is exactly zero.
template <class X>
void gather(const Window& w, const X* image, const int64_t* strides, int64_t row, int64_t column, int64_t first,
            int64_t channels, int32_t zero, int16_t* patch) {
  for (int64_t c = first; c < first + channels; ++c)
    for (int64_t i = 0; i < w.kernel_h; ++i) {
      const int64_t y = row * w.stride[0] - w.padding[0] + i * w.dilation[0];
      for (int64_t j = 0; j < w.kernel_w; ++j) {
        const int64_t x = column * w.stride[1] - w.padding[1] + j * w.dilation[1];
        const bool in = y >= 0 && y < w.height && x >= 0 && x < w.width;
        *patch++ = in ? int16_t(image[c * strides[1] + y * strides[2] + x * strides[3]] - zero) : int16_t(0);
      }
    }
}

Tensor int8_conv2d_cpu(const Tensor& x, const Tensor& weight, const Tensor& scale, std::optional<Tensor> x_zero,
                       std::optional<Tensor> weight_zero, std::optional<Tensor> bias,
                       std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
                       int64_t groups) {
  const char* op = "int8_conv2d";
  check_bytes(op, "x", x);
  check_bytes(op, "weight", weight);
  STD_TORCH_CHECK(x.dim() == 4 && weight.dim() == 4 && groups >= 1 && x.size(1) == weight.size(1) * groups &&
                      weight.size(0) % groups == 0,
                  op, ": x must be [N, C, H, W] and weight [O, C / groups, kH, kW] with O a multiple of groups = ",
                  groups, ", got ", shape_of(x), " and ", shape_of(weight));
  STD_TORCH_CHECK(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2, op,
                  ": stride, padding and dilation must have two values each");
  const Affine a(op, x, weight, scale, x_zero, weight_zero, bias);
  Window w{x.size(0), weight.size(1), x.size(2), x.size(3), 0, 0, weight.size(2), weight.size(3), {}, {}, {}};
  for (int d = 0; d < 2; ++d) {
    STD_TORCH_CHECK(stride[d] >= 1 && padding[d] >= 0 && dilation[d] >= 1, op,
                    ": stride and dilation must be at least 1, padding at least 0");
    w.stride[d] = stride[d], w.padding[d] = padding[d], w.dilation[d] = dilation[d];
  }
  const int64_t free_h = w.height + 2 * padding[0] - dilation[0] * (w.kernel_h - 1) - 1;
  const int64_t free_w = w.width + 2 * padding[1] - dilation[1] * (w.kernel_w - 1) - 1;
  STD_TORCH_CHECK(free_h >= 0 && free_w >= 0, op, ": x must be at least as large as the kernel, got ", shape_of(x),
                  " for weight ", shape_of(weight));
  w.rows = free_h / stride[0] + 1;
  w.columns = free_w / stride[1] + 1;
  const int64_t outputs = a.weight.rows, each = outputs / groups, k = a.weight.depth, pixels = w.rows * w.columns;
  Tensor y = torch::stable::empty({w.batch, outputs, w.rows, w.columns}, ScalarType::Float);
  float* out = static_cast<float*>(y.mutable_data_ptr());
  const int64_t strides[4] = {x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
  with_bytes(x, [&](const auto* from) {
    torch::stable::parallel_for(0, w.batch * pixels, grain(outputs * k), [&](int64_t b, int64_t e) {
      std::vector<int16_t> patch(k);
      std::vector<int32_t> acc(each);
      for (int64_t p = b; p < e; ++p) {
        const int64_t image = p / pixels, pixel = p % pixels;
        for (int64_t g = 0; g < groups; ++g) {
          gather(w, from + image * strides[0], strides, pixel / w.columns, pixel % w.columns, g * w.channels,
                 w.channels, a.zero(), patch.data());
          a.row(patch.data(), g * each, each, acc.data(), out + (image * outputs + g * each) * pixels + pixel,
                pixels);
        }
      }
    });
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseq, CPU, m) {
  m.impl("int8_linear", TORCH_BOX(&int8_linear_cpu));
  m.impl("int8_conv2d", TORCH_BOX(&int8_conv2d_cpu));
}

}  // namespace sparseq::gemm
