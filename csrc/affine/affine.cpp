#include "affine.h"

namespace sparseq::affine {

Reduction::Reduction(const Layout& l) : layout(l), by_columns(l.inner < kNarrow) {
  if (by_columns) {
    const int64_t columns = layout.channels * layout.inner;
    rows = (layout.outer + kRowBlocks - 1) / kRowBlocks;
    parts = rows ? (layout.outer + rows - 1) / rows : 0;
    tasks = parts * ((columns + kColumns - 1) / kColumns);
    slots = parts * columns;
  } else {
    rows = 1;
    parts = (layout.inner + kSegment - 1) / kSegment;
    tasks = slots = layout.outer * layout.channels * parts;
  }
}

const Kernels& kernels(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::amx_int8:
    case Isa::avx512_vnni:
    case Isa::avx512: return kernels_avx512();
    case Isa::avx_vnni:
    case Isa::avx2: return kernels_avx2();
#else
    default:
#endif
    case Isa::scalar: break;
  }
  return kernels_scalar();
}

}  // namespace sparseq::affine
