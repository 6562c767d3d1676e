#include "int4.cuh"

namespace sparseq::weight_only::cuda {
namespace {

Int4 common(const Linear& l, const Int4Weight& w, int64_t group) {
  return {w.packed,
          w.scale,
          w.zero,
          (l.depth + 1) / 2,
          w.groups,
          Divider(group),
          w.is_signed ? 0x88888888u : 0,
          w.is_signed ? 8u : 0};
}

template <int kBytes, bool kZero>
void whole(const Linear& l, const Int4Weight& w, cudaStream_t stream) {
  using Weight = WholeInt4<kBytes, kZero>;
  const Weight weight{common(l, w, l.depth / w.groups / Weight::kColumns)};
  const int64_t steps = l.depth / Weight::kColumns;
  by_type(l.type, [&]<class T>(T) {
    l.count == 1 ? launch<T, 1>(l, weight, steps, stream) : launch<T, kTogether>(l, weight, steps, stream);
  });
}

}  // namespace

void int4_linear(const Linear& l, const Int4Weight& w, cudaStream_t stream) {
  if (l.count == 0 || l.outputs == 0) return;
  const int64_t group = l.depth / w.groups;
  // x's rows and a weight's are a multiple of 16 bytes long where the columns are one of 32; of 8: 16 and 4
  if (group > 0 && group % 32 == 0 && multiple(w.packed, 16) && multiple(l.x, 16)) {
    w.zero != nullptr ? whole<16, true>(l, w, stream) : whole<16, false>(l, w, stream);
  } else if (group > 0 && group % 8 == 0 && multiple(w.packed, 4) && multiple(l.x, 16)) {
    whole<4, true>(l, w, stream);
  } else {
    const AnyInt4 weight{common(l, w, group), l.depth};
    by_type(l.type, [&]<class T>(T) { launch<T, kTogether>(l, weight, (l.depth + 1) / 2, stream); });
  }
}

}  // namespace sparseq::weight_only::cuda
