// AMX for products of some rows; few rows by AVX-512-VNNI, of the same weights in memory; depthwise and what prepares
// rows as there.
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
#include "depthwise_columns_avx512.h"
#include "kernel.h"
#include "micro_dot.h"

namespace {

// Dense panels of 16 channels, as tiles take them.
struct FewRows : Avx512Vnni {
  static constexpr int kDenseVectors = 1, kBroadVectors = 0, kBroadRows = 0;
  using Columns = ColumnsAvx512;
  using Winograd = void;  // whose 16-bit products are slower than tiles
};
using Few = Driver<DotMicro<FewRows>>;

#ifdef SPARSEQ_PORTABLE_INTRINSICS
using Kernel = AmxKernel<Avx2Float>;
#else
using Kernel = AmxKernel<Avx512Float>;
#endif

void run(const sparseq::Tiles& w, const sparseq::Input& input, const sparseq::Epilogue& epilogue,
         const sparseq::WorkPlan& plan, int64_t begin, int64_t end) {
  (plan.amx ? Kernel::run : Few::run)(w, input, epilogue, plan, begin, end);
}

}  // namespace

namespace sparseq {

const Kernels& kernels_amx_int8() {
  static const Kernels table = [] {
    Kernels kernels = Few::kernels("amx_int8");
    kernels.layout.tile_inputs = amx::kInputs;
    kernels.run = run;
    return kernels;
  }();
  return table;
}

}  // namespace sparseq
