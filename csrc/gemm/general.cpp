// The general path of the INT8 products: any signs and zero points, one patch at a time, plain and exact.
#include "arguments.h"

namespace sparseq::gemm {
namespace {

// y[n] for rows [first, first + count) from one patch of depth values, relative to the zero point
void row(const Arguments& a, const int16_t* x, int64_t first, int64_t count, int32_t* acc, float* y) {
  const general::Kernels& kernel = general::kernels(active_isa());
  const int64_t k = a.weight.depth;
  const void* w = static_cast<const uint8_t*>(a.weight.dense.const_data_ptr()) + first * k;
  if (a.weight.is_signed)
    kernel.rows_s8(x, static_cast<const int8_t*>(w), count, k, acc);
  else
    kernel.rows_u8(x, static_cast<const uint8_t*>(w), count, k, acc);
  int32_t sum = 0;
  if (a.weight_zero.data)
    for (int64_t i = 0; i < k; ++i) sum += x[i];
  for (int64_t n = 0; n < count; ++n) {
    const int32_t zero = a.weight_zero.data ? a.weight_zero.data[first + n] : 0;
    const float product = float(acc[n] - zero * sum) * a.scale.data[first + n];
    y[n] = a.bias.data ? product + a.bias.data[first + n] : product;
  }
}

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

}  // namespace

const general::Kernels& general::kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa != Isa::scalar) return kernels_avx2();
#endif
  (void)isa;
  return kernels_scalar();
}

void general_linear(const Arguments& a, const Tensor& x, int64_t rows, float* y) {
  const int64_t n = a.weight.rows, k = a.weight.depth;
  with_bytes(x, [&](const auto* from) {
    torch::stable::parallel_for(0, rows, grain(n * k), [&](int64_t b, int64_t e) {
      std::vector<int16_t> patch(k);
      std::vector<int32_t> acc(n);
      for (int64_t r = b; r < e; ++r) {
        for (int64_t i = 0; i < k; ++i) patch[i] = int16_t(from[r * k + i] - a.zero());
        row(a, patch.data(), 0, n, acc.data(), y + r * n);
      }
    });
  });
}

void general_conv2d(const Arguments& a, const Window& w, const Tensor& x, float* y) {
  const int64_t outputs = a.weight.rows, each = outputs / w.groups, k = a.weight.depth, pixels = w.rows * w.columns;
  const int64_t strides[4] = {x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
  with_bytes(x, [&](const auto* from) {
    torch::stable::parallel_for(0, w.pixels(), grain(outputs * k), [&](int64_t b, int64_t e) {
      std::vector<int16_t> patch(k);
      std::vector<int32_t> acc(each);
      for (int64_t p = b; p < e; ++p) {
        const int64_t image = p / pixels, pixel = p % pixels;
        for (int64_t g = 0; g < w.groups; ++g) {
          gather(w, from + image * strides[0], strides, pixel / w.columns, pixel % w.columns, g * w.channels,
                 w.channels, a.zero(), patch.data());
          row(a, patch.data(), g * each, each, acc.data(), y + p * outputs + g * each);
        }
      }
    });
  });
}

}  // namespace sparseq::gemm
