#include <algorithm>

#include "int4.cuh"
#include "kernels.cuh"
#include "launch.h"

namespace sparseq::affine::cuda {
namespace {

// Above this many blocks the kernels' loops take over. It is many times what any device holds at once, so
// that its scheduler evens out the load, and small enough that a block's set-up costs nothing.
constexpr int64_t kMaxBlocks = 65536;

int blocks_for(int64_t work, int64_t each) { return int(std::clamp<int64_t>((work + each - 1) / each, 1, kMaxBlocks)); }

// The greatest power of two that leaves each of the lanes at least two steps, within a warp; a whole block
// where each of its threads has that much.
int lanes_for(int64_t steps) {
  if (steps >= 2 * kThreads) return kThreads;
  int lanes = 1;
  while (lanes < 32 && steps / 4 >= lanes) lanes *= 2;
  return lanes;
}

template <class F>
void by_dtype(DType type, F f) {
  switch (type) {
    case DType::float32: return f(float{});
    case DType::float16: return f(Half{});
    case DType::bfloat16: return f(BFloat16{});
  }
}

template <class Op>
void run(Op op, const Problem& problem, cudaStream_t stream) {
  constexpr int N = Op::width;
  const int64_t numel = problem.layout.numel();
  if (numel == 0) return;
  const Spread spread(problem);
  const bool whole = problem.layout.channels == 1 || problem.layout.inner % N == 0;
  if (!op.fits())
    elementwise<1, false><<<blocks_for(numel, kThreads), kThreads, 0, stream>>>(op, spread, numel);
  else if (whole)
    elementwise<N, false><<<blocks_for(numel, int64_t(kThreads) * N), kThreads, 0, stream>>>(op, spread, numel);
  else
    elementwise<N, true><<<blocks_for(numel, int64_t(kThreads) * N), kThreads, 0, stream>>>(op, spread, numel);
}

template <int N, class Reducer>
void reduce_with(Reducer reducer, const Cut& cut, Pair* partials, cudaStream_t stream) {
  const Layout& layout = cut.layout;
  if (cut.by_columns) {
    const int64_t columns = layout.channels * layout.inner, vectors = (columns + N - 1) / N;
    int across = 1;
    while (across < 32 && across < vectors) across *= 2;
    const int64_t groups = (vectors + across - 1) / across, tasks = cut.parts * groups;
    const Columns shape{layout.outer, columns, cut.rows, tasks, Divider(groups), across};
    reduce_columns<N><<<blocks_for(tasks, 1), kThreads, 0, stream>>>(reducer, shape, partials);
  } else {
    const int lanes = lanes_for(std::min(layout.inner, kSegment) / N);
    const int64_t tasks = layout.outer * layout.channels * cut.parts;
    const Runs runs{layout.inner, tasks, Divider(cut.parts), Divider(layout.channels), lanes};
    reduce_runs<N><<<blocks_for(tasks, kThreads / lanes), kThreads, 0, stream>>>(reducer, runs, partials);
  }
}

template <class Reducer, class Finish>
void reduce(Reducer reducer, Finish finish, const Cut& cut, Pair* partials, int64_t channels, cudaStream_t stream) {
  constexpr int N = Reducer::width;
  const Layout& layout = cut.layout;
  if (layout.numel() != 0) {
    // vectors start on a boundary in every run, or in every row; a single run may have a tail
    const int64_t length = cut.by_columns ? layout.channels * layout.inner : layout.inner;
    const bool even = length % N == 0 || (!cut.by_columns && layout.outer * layout.channels == 1);
    if (even && reducer.fits())
      reduce_with<N>(reducer, cut, partials, stream);
    else
      reduce_with<1>(reducer, cut, partials, stream);
  }
  if (channels == 0) return;
  const int64_t side = std::max<int64_t>(cut.by_columns ? layout.inner : cut.parts, 1);
  const int64_t each = cut.slots / std::max<int64_t>(layout.channels, 1);
  const int lanes = lanes_for(each);
  const Slots slots{channels, each, Divider(side), lanes};
  combine<<<blocks_for(channels, kThreads / lanes), kThreads, 0, stream>>>(finish, slots, partials);
}

}  // namespace

Cut::Cut(const Layout& l) : layout(l), by_columns(l.inner < kNarrow && l.outer > 1), rows(1) {
  const int64_t columns = layout.channels * layout.inner;
  if (layout.numel() == 0) {
    parts = slots = 0;
  } else if (by_columns) {
    // 64 rows keep the partial results small beside the data; narrow tensors take as many as fill a block;
    // 1024 blocks of rows are enough for any device
    rows = std::max({int64_t(64), kSegment / columns, (layout.outer + 1023) / 1024});
    parts = (layout.outer + rows - 1) / rows;
    slots = parts * columns;
  } else {
    parts = (layout.inner + kSegment - 1) / kSegment;
    slots = layout.outer * layout.channels * parts;
  }
}

void quantize(DType type, const Problem& problem, const void* x, uint8_t* q, cudaStream_t stream) {
  by_dtype(type, [&]<class T>(T) { run(Quantize<T>{static_cast<const T*>(x), q}, problem, stream); });
}

void dequantize(DType type, bool is_signed, const Problem& problem, const void* q, void* y, cudaStream_t stream) {
  by_dtype(type, [&]<class T>(T) {
    if (is_signed)
      run(Dequantize<int8_t, T>{static_cast<const int8_t*>(q), static_cast<T*>(y)}, problem, stream);
    else
      run(Dequantize<uint8_t, T>{static_cast<const uint8_t*>(q), static_cast<T*>(y)}, problem, stream);
  });
}

void fake_quantize(DType type, const Problem& problem, const void* x, void* y, cudaStream_t stream) {
  by_dtype(type,
           [&]<class T>(T) { run(FakeQuantize<T>{static_cast<const T*>(x), static_cast<T*>(y)}, problem, stream); });
}

void backward(DType type, const Problem& problem, const void* grad, const void* x, void* grad_x, cudaStream_t stream) {
  by_dtype(type, [&]<class T>(T) {
    run(Backward<T>{static_cast<const T*>(grad), static_cast<const T*>(x), static_cast<T*>(grad_x)}, problem, stream);
  });
}

void learned_backward(DType type, const Problem& problem, const Cut& cut, const void* grad, const void* x, void* grad_x,
                      double grad_factor, Pair* partials, int64_t channels, float* grad_scale, float* grad_zero,
                      cudaStream_t stream) {
  by_dtype(type, [&]<class T>(T) {
    const Sums sums{problem.scale, grad_factor, grad_scale, grad_zero};
    reduce(LearnedBackward<T>{Spread(problem), static_cast<const T*>(grad), static_cast<const T*>(x),
                              static_cast<T*>(grad_x)},
           sums, cut, partials, channels, stream);
  });
}

void minmax(DType type, const Cut& cut, const void* x, Pair* partials, float* low, float* high, cudaStream_t stream) {
  by_dtype(type, [&]<class T>(T) {
    reduce(MinMax<T>{static_cast<const T*>(x)}, Extremes{low, high}, cut, partials, cut.layout.channels, stream);
  });
}

void observed(DType type, const Problem& problem, const Cut& cut, const void* x, void* y, Pair* partials, float* low,
              float* high, cudaStream_t stream) {
  by_dtype(type, [&]<class T>(T) {
    reduce(Observed<T>{Spread(problem), static_cast<const T*>(x), static_cast<T*>(y)}, Extremes{low, high}, cut,
           partials, cut.layout.channels, stream);
  });
}

void pack_int4(const uint8_t* q, uint8_t* packed, int64_t rows, int64_t columns, cudaStream_t stream) {
  const int64_t each = (columns + 1) / 2, bytes = rows * each;
  if (bytes == 0) return;
  const Int4Rows shape{columns, bytes, Divider(each)};
  if (columns % 2 == 0 && aligned<2 * kPackBytes>(q) && aligned<kPackBytes>(packed))
    affine::pack_int4<true>
        <<<blocks_for(bytes, kPackThreads * kPackBytes), kPackThreads, 0, stream>>>(q, packed, shape);
  else
    affine::pack_int4<false><<<blocks_for(bytes, kPackThreads), kPackThreads, 0, stream>>>(q, packed, shape);
}

void unpack_int4(const uint8_t* packed, uint8_t* q, int64_t rows, int64_t columns, bool is_signed,
                 cudaStream_t stream) {
  const int64_t each = (columns + 1) / 2, bytes = rows * each;
  if (bytes == 0) return;
  const Int4Rows shape{columns, bytes, Divider(each)};
  if (columns % 2 == 0 && aligned<2 * kPackBytes>(q) && aligned<kPackBytes>(packed))
    affine::unpack_int4<true>
        <<<blocks_for(bytes, kPackThreads * kPackBytes), kPackThreads, 0, stream>>>(packed, q, shape, is_signed);
  else
    affine::unpack_int4<false>
        <<<blocks_for(bytes, kPackThreads), kPackThreads, 0, stream>>>(packed, q, shape, is_signed);
}

}  // namespace sparseq::affine::cuda
