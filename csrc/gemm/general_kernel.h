// The INT8 loops, written once; the compiler vectorises them for the target of the including file
// (vpmovsxbw + vpmaddwd on AVX2). Internal linkage only.
#pragma once

#include "general.h"

namespace sparseq::gemm::general {
namespace {

template <class W>
void rows(const int16_t* x, const W* w, int64_t n, int64_t k, int32_t* out) {
  int64_t row = 0;
  for (; row + 4 <= n; row += 4) {  // four rows share each load of x
    const W *a = w + row * k, *b = a + k, *c = b + k, *d = c + k;
    int32_t sa = 0, sb = 0, sc = 0, sd = 0;
    for (int64_t i = 0; i < k; ++i) {
      const int32_t v = x[i];
      sa += v * int16_t(a[i]);
      sb += v * int16_t(b[i]);
      sc += v * int16_t(c[i]);
      sd += v * int16_t(d[i]);
    }
    out[row] = sa;
    out[row + 1] = sb;
    out[row + 2] = sc;
    out[row + 3] = sd;
  }
  for (; row < n; ++row) {
    int32_t sum = 0;
    for (int64_t i = 0; i < k; ++i) sum += int32_t(x[i]) * int16_t(w[row * k + i]);
    out[row] = sum;
  }
}

constexpr Kernels make_kernels() { return {rows<int8_t>, rows<uint8_t>}; }

}  // namespace
}  // namespace sparseq::gemm::general
