// INT8 products: what a caller passes, and one table of functions per ISA. No torch.
#pragma once

#include <cstdint>

#include "../core/isa.h"

namespace sparseq::gemm::general {

struct Kernels {
  // out[n] = sum_k x[k] * w[n][k], exact in int32; x is already relative to its zero point, in
  // [-255, 255]. Rows of w are k elements apart.
  void (*rows_s8)(const int16_t* x, const int8_t* w, int64_t n, int64_t k, int32_t* out);
  void (*rows_u8)(const int16_t* x, const uint8_t* w, int64_t n, int64_t k, int32_t* out);
};

const Kernels& kernels_scalar();
const Kernels& kernels_avx2();
const Kernels& kernels(Isa isa);

}  // namespace sparseq::gemm::general
