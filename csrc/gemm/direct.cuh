// Products without tensor cores: depthwise convolutions, which have nothing to share between outputs, and weights
// that are unsigned or have zero points. Every product is (x - x_zero) * (w - weight_zero), exact in int32. A thread
// computes one output of one pixel; neighbours in a warp are neighbouring channels. No torch header.
#pragma once

#include "finish.cuh"
#include "loader.cuh"

namespace sparseq::gemm {
namespace {

struct DirectTask {
  Window window;
  cuda::PlainWeight weight;
  int32_t x_flip, w_flip;  // 128 for signed bytes: (b ^ 128) - 128
  const int32_t* x_zero;
  const int32_t* row_zero;
  Divider outputs, of_group;
  int32_t kernel_height;
  cuda::Finish finish;
};

constexpr int kDirectThreads = 256;

__global__ void __launch_bounds__(kDirectThreads) direct(const DirectTask given) {
  const DirectTask task = at_once(given);
  const Window& w = task.window;
  const int64_t i = int64_t(blockIdx.x) * kDirectThreads + threadIdx.x;
  const int64_t m = task.outputs.divide(i), n = i - m * task.outputs.divisor;
  if (m >= w.count) return;
  const Corner corner(w, m);
  const int32_t x_zero = task.x_flip + (task.row_zero != nullptr ? __ldg(task.row_zero + m) : value_or(task.x_zero, 0));
  const int32_t w_zero = task.w_flip + (task.weight.zero != nullptr ? __ldg(task.weight.zero + n) : 0);
  const uint8_t* x = w.x + task.of_group.divide(n) * w.group_bytes;
  const uint8_t* weight = task.weight.data + n * task.weight.strides[0];
  int32_t sum = 0;
  for (int ky = 0; ky < task.kernel_height; ++ky) {
    for (int kx = 0; kx < w.kernel_width; ++kx, weight += task.weight.strides[1]) {
      const int dy = ky * w.dilation_y, dx = kx * w.dilation_x;
      if (!corner.inside(w, dy, dx)) continue;  // padding is the zero point, so adds nothing
      const uint8_t* from = x + corner.at(w, dy, dx) * w.stride;
      for (int c = 0; c < w.bytes; ++c)
        sum += ((__ldg(from + c) ^ task.x_flip) - x_zero) *
               ((__ldg(weight + c * task.weight.strides[2]) ^ task.w_flip) - w_zero);
    }
  }
  const Outputs<1> outputs(task.finish, n, 1);
  const int32_t sums[1] = {sum};
  outputs.row(task.finish, sums, m);
}

}  // namespace
}  // namespace sparseq::gemm
