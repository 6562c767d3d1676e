#include "sparse.cuh"

namespace sparseq::weight_only::cuda {

void linear_24(const Linear& l, const SparseWeight& w, cudaStream_t stream) {
  if (l.count == 0 || l.outputs == 0) return;
  const int64_t groups = (l.depth + 3) / 4;
  const Sparse24 common{w.values, w.indices, 2 * groups, (groups + 1) / 2};
  const bool whole = l.depth > 0 && l.depth % 8 == 0 && multiple(w.values, 16) && multiple(l.x, 16);
  by_type(l.type, [&]<class T>(T) {
    by_type(w.type, [&]<class V>(V) {
      // of two different 16-bit types, which few will mix, there is the slow kernel alone
      if constexpr (sizeof(T) == 4 || sizeof(V) == 4 || std::is_same_v<T, V>) {
        const WholeSparse<V> weight{common};
        const int64_t steps = l.depth / weight.kColumns;
        if (whole)
          return l.count == 1 ? launch<T, 1>(l, weight, steps, stream) : launch<T, kTogether>(l, weight, steps, stream);
      }
      launch<T, kTogether>(l, AnySparse{common, l.depth, int64_t(w.type)}, common.bytes, stream);
    });
  });
}

}  // namespace sparseq::weight_only::cuda
