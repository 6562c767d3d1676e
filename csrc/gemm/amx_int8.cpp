// AMX for products of some rows; few rows, depthwise and what prepares rows as with AVX-512-VNNI, whose weights in
// memory these are.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12: _mm512_undefined_* in its own headers
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <utility>

#include "amx.h"
#ifdef SPARSEQ_PORTABLE_INTRINSICS
#include <simde/x86/avx512.h>
#pragma GCC target("avx2,fma,f16c")
#include "../core/int8_avx2.h"
#else
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
#include "../core/float_avx512.h"
#endif
#include "amx_kernel.h"

namespace {

#ifdef SPARSEQ_PORTABLE_INTRINSICS
using Kernel = AmxKernel<Avx2Float>;
#else
using Kernel = AmxKernel<Avx512Float>;
#endif

void run(const sparseq::Tiles& w, const sparseq::Input& input, const sparseq::Epilogue& epilogue,
         const sparseq::WorkPlan& plan, int64_t begin, int64_t end) {
  (plan.amx ? Kernel::run : sparseq::kernels_avx512_vnni().run)(w, input, epilogue, plan, begin, end);
}

}  // namespace

namespace sparseq {

const Kernels& kernels_amx_int8() {
  static const Kernels table = [] {
    Kernels kernels = kernels_avx512_vnni();
    kernels.name = "amx_int8";
    kernels.layout.tile_inputs = amx::kInputs;
    kernels.layout.broad_vectors = 0;
    kernels.layout.direct = {};  // Winograd's 16-bit products are slower than these
    kernels.run = run;
    return kernels;
  }();
  return table;
}

}  // namespace sparseq
