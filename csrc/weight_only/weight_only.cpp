#include "weight_only.h"

namespace sparseq::weight_only {

void set_groups(Int4& p, int64_t groups) {
  p.groups = groups;
  p.group_size = p.linear.depth / groups;
  const int64_t size = p.group_size;
  if (groups == 1 || size % kChunk == 0) {
    p.kind = Groups::whole;
    p.span = groups == 1 ? p.linear.depth / kChunk + 1 : size / kChunk;
  } else if (size >= 8 && kChunk % size == 0) {
    p.kind = Groups::spread;
    while (8 << p.shift < size) ++p.shift;
    p.step = 16 >> p.shift;
  } else {
    p.kind = size % 8 == 0 ? Groups::lanes : Groups::any;
  }
}

template <class T>
void arrange_int4(const T* x, int64_t depth, float* to) {
  for (; depth >= kChunk; depth -= kChunk, x += kChunk, to += kChunk)
    for (int lane = 0; lane < 16; ++lane)
      for (int j = 0; j < 8; ++j) to[16 * j + lane] = to_float(x[8 * lane + j]);
  if (depth == 0) return;
  for (int64_t k = 0; k < kChunk; ++k) to[16 * (k % 8) + k / 8] = k < depth ? to_float(x[k]) : 0.0f;
}

template <class T>
void arrange_sparse(const T* x, int64_t depth, float* to) {
  for (int64_t k = 0; k < depth; ++k) to[k] = to_float(x[k]);
  for (int64_t k = depth; k < padded_to(depth, kStep); ++k) to[k] = 0.0f;
}

template void arrange_int4(const float*, int64_t, float*);
template void arrange_int4(const Half*, int64_t, float*);
template void arrange_int4(const BFloat16*, int64_t, float*);
template void arrange_sparse(const float*, int64_t, float*);
template void arrange_sparse(const Half*, int64_t, float*);
template void arrange_sparse(const BFloat16*, int64_t, float*);

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

}  // namespace sparseq::weight_only
