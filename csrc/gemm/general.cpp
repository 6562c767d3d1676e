// The general path of the INT8 products: any signs and zero points, one patch at a time, plain and exact.
#include "general.h"

#include "arguments.h"
//
#include "../core/int8_scalar.h"
#include "epilogue_kernel.h"

namespace sparseq::gemm {
namespace {

using Finish = EpilogueKernel<ScalarFloat>;

// acc[n] for the weight's rows [first, first + count) and one patch of depth values, relative to zero points
void sums(const Arguments& a, const int16_t* x, int64_t first, int64_t count, int32_t* acc) {
  const general::Kernels& kernel = general::kernels(active_isa());
  const int64_t k = a.weight.depth;
  const void* w = static_cast<const uint8_t*>(a.weight.dense.const_data_ptr()) + first * k;
  if (a.weight.is_signed)
    kernel.rows_s8(x, static_cast<const int8_t*>(w), count, k, acc);
  else
    kernel.rows_u8(x, static_cast<const uint8_t*>(w), count, k, acc);
  if (!a.weight_zero.data) return;
  int32_t sum = 0;
  for (int64_t i = 0; i < k; ++i) sum += x[i];
  for (int64_t n = 0; n < count; ++n) acc[n] -= a.weight_zero.data[first + n] * sum;
}

// The patch under one output pixel, in the weight's order (channel, tap row, tap column), relative to the
// zero point: padding is exactly zero.
void gather(const Window& w, const Input& input, int64_t pixel, int64_t first, int32_t zero, int16_t* patch) {
  const int64_t row = pixel / w.columns % w.rows, column = pixel % w.columns, image = pixel / w.columns / w.rows;
  const int64_t taps = w.kernel_h * w.kernel_w;
  for (int64_t i = 0; i < w.kernel_h; ++i) {
    const int64_t y = row * w.stride[0] - w.padding[0] + i * w.dilation[0];
    for (int64_t j = 0; j < w.kernel_w; ++j, ++patch) {
      const int64_t x = column * w.stride[1] - w.padding[1] + j * w.dilation[1];
      const bool inside = y >= 0 && y < w.height && x >= 0 && x < w.width;
      const uint8_t* from = input.data + ((image * w.height + y) * w.width + x) * input.stride + first;
      for (int64_t c = 0; c < w.channels; ++c) patch[c * taps] = inside ? int16_t(from[c] - zero) : int16_t(0);
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

void general_product(const Arguments& a, const Window& w, const Input& input, const Epilogue& epilogue) {
  const int64_t outputs = a.weight.rows, each = outputs / w.groups, k = a.weight.depth;
  const std::vector<int32_t> no_sums(static_cast<size_t>(outputs));  // the zero points are dealt with here
  Epilogue exact = epilogue;
  exact.zero = 0;
  exact.row_zero = nullptr;
  torch::stable::parallel_for(0, w.pixels(), grain(outputs * k), [&](int64_t b, int64_t e) {
    std::vector<int16_t> patch(static_cast<size_t>(k));
    std::vector<int32_t> acc(static_cast<size_t>(each + ScalarFloat::kLanes));  // read in whole vectors
    for (int64_t p = b; p < e; ++p) {
      const int32_t zero = epilogue.row_zero ? epilogue.row_zero[p] : epilogue.zero;
      for (int64_t g = 0; g < w.groups; ++g) {
        gather(w, input, p, g * w.channels, zero, patch.data());
        sums(a, patch.data(), g * each, each, acc.data());
        for (int64_t n = 0; n < each; n += Finish::kMaxWidth) {
          const Finish finish(exact, no_sums.data(), g * each + n, std::min<int64_t>(Finish::kMaxWidth, each - n));
          finish.rows(acc.data() + n, 0, p, 1);
        }
      }
    }
  });
}

}  // namespace sparseq::gemm
