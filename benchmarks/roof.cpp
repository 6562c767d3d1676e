// One ISA's INT8 micro-kernels in L1, each class of block alone, and whole layers beside them: what share of
// the loop's own speed a layer reaches. One thread. Built and run by roof.py, which defines
//   SOURCE   the ISA's file      MICRO   its micro-kernels      KERNELS   its table
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "../csrc/sparse24/format.h"
#include SOURCE  // ends in its target pragma: all below is for that ISA

namespace {

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// The best of many: what the core does when nothing else gets in.
template <class F>
double best_of(F f) {
  double best = 1e9;
  const double start = seconds();
  for (int i = 0; i < 20 || seconds() - start < 0.3; ++i) {
    const double t = seconds();
    f();
    best = std::min(best, seconds() - t);
  }
  return best;
}

// GMAC/s of a micro-kernel on blocks of one class.
template <bool kDense, class Micro = MICRO>
double in_l1(int block_class) {
  constexpr bool kBroad = kDense && Micro::kBroadRows > 0;
  const int rows = kBroad ? Micro::kBroadRows : kDense ? Micro::kDenseRows : Micro::kSparseRows;
  const int lanes = Micro::kLanes * (kBroad   ? Micro::kBroadVectors
                                     : kDense ? Micro::kDenseVectors
                                              : Micro::kSparsePanels);
  const bool half = kDense && Micro::kClassified && block_class != sparseq::kQuad;
  const int inputs = kDense ? (half ? 4 : 8) : 16, blocks = 256 / inputs, calls = 200;
  sparseq::AlignedBytes weights(32 * 1024), activations(16 * 1024);
  const int64_t beside = 8 * 1024;
  for (std::size_t i = 0; i < weights.size(); ++i) weights.data()[i] = static_cast<uint8_t>(i * 7 % 8);
  std::vector<sparseq::BlockRef> refs;
  for (int b = 0; b < blocks; ++b) refs.push_back({0, static_cast<uint16_t>(b * inputs / 4)});
  std::vector<const uint8_t*> pointers;
  for (int r = 0; r < rows; ++r) pointers.push_back(activations.data() + r * 320);
  uint32_t count[sparseq::kClasses] = {};
  static const int32_t start[64] = {};
  count[block_class] = static_cast<uint32_t>(blocks);
  const uint8_t* next = Micro::kClassified ? weights.data() : nullptr;
  const sparseq::Operands operands{pointers.data(),
                                   rows,
                                   activations.data(),
                                   320,
                                   refs.data(),
                                   count,
                                   256,
                                   weights.data(),
                                   weights.data() + 2 * beside,
                                   beside,
                                   start,
                                   next,
                                   0};
  alignas(64) static int32_t acc[64 * 64];
  using Rows = std::conditional_t<Micro::kStrided, StridedRows, TapRows>;  // as a linear layer's
  using Function = void (*)(const sparseq::Operands&, int32_t*, int64_t, bool);
  Function volatile chosen = [] {
    if constexpr (kBroad)
      return Function{Micro::template broad<Micro::kBroadRows>};
    else if constexpr (kDense)
      return Function{Micro::template dense<Micro::kDenseRows, Rows>};
    else
      return Function{Micro::template sparse<Micro::kSparseRows, Rows>};
  }();
  const Function micro = chosen;  // not inlined: as the driver calls it
  const double time = best_of([&] {
    for (int i = 0; i < calls; ++i) micro(operands, acc, 64, true);
  });
  return 1e-9 * calls * rows * lanes * blocks * inputs / time;
}

// GMAC/s of a linear layer, float32 out, on bell-shaped weights.
double whole(const sparseq::Kernels& kernel, bool dense, int64_t m, int64_t k, int64_t n,
             const sparseq::CacheSizes& caches) {
  std::mt19937 rng(1);
  std::normal_distribution<float> bell(0, 28);
  std::vector<float> weight(static_cast<std::size_t>(n * k));
  for (auto& v : weight) v = std::max(-127.0f, std::min(127.0f, bell(rng)));
  const sparseq::Shape24 matrix{n, k};
  std::vector<int8_t> q(weight.size());
  for (std::size_t i = 0; i < q.size(); ++i) q[i] = static_cast<int8_t>(weight[i]);
  for (std::size_t i = 0; !dense && i < q.size(); i += 4) {  // k is a multiple of 4
    std::size_t order[4] = {i, i + 1, i + 2, i + 3};
    std::sort(order, order + 4, [&](std::size_t a, std::size_t b) { return std::abs(q[a]) < std::abs(q[b]); });
    q[order[0]] = q[order[1]] = 0;
  }
  const sparseq::WeightShape shape{1, n, 1, k};
  sparseq::PackedWeight packed;
  if (dense) {
    packed = sparseq::pack_dense(q.data(), shape, kernel.layout, caches);
  } else {
    std::vector<int8_t> values(static_cast<std::size_t>(n * sparseq::values_24(k)));
    std::vector<uint8_t> indices(static_cast<std::size_t>(n * sparseq::index_bytes_24(k)));
    sparseq::pack_24(q.data(), matrix, values.data(), indices.data(), 0, n);
    packed = sparseq::pack_sparse24(values.data(), indices.data(), shape, kernel.layout, caches);
  }
  const int64_t stride = k + 64;
  sparseq::AlignedBytes x(static_cast<std::size_t>(m * stride + 64)), y(static_cast<std::size_t>(4 * m * n));
  for (std::size_t i = 0; i < x.size(); ++i) x.data()[i] = static_cast<uint8_t>(i * 31);
  const std::vector<float> multiplier(static_cast<std::size_t>(n), 0.01f);
  sparseq::Input input;
  input.data = x.data();
  input.stride = stride;
  sparseq::Epilogue epilogue;
  epilogue.multiplier = multiplier.data();
  epilogue.zero = 128;
  epilogue.output = y.data();
  epilogue.output_stride = n;
  const sparseq::Tiles tiles(packed);
  const sparseq::WorkPlan plan = sparseq::plan_work(tiles, nullptr, m, caches, 1);
  return 1e-9 * static_cast<double>(m * k * n) /
         best_of([&] { kernel.run(tiles, input, epilogue, plan, 0, plan.items); });
}

template <bool kDense>
void report(const sparseq::CacheSizes& caches) {
  const sparseq::Kernels& kernel = sparseq::KERNELS();
  static const char* names[] = {"L1, quads", "L1, pairs", "L1, wide", "L1, first wide", "L1, second wide"};
  constexpr int classes = kDense ? sparseq::kClasses : sparseq::kWide + 1;
  const auto line = [&](const char* work, double rate) {
    std::printf("%s|%s|%s|%.1f\n", kernel.name, kDense ? "dense" : "2:4", work, rate);
  };
  if (!MICRO::kClassified) line("L1", in_l1<kDense>(0));
  for (int c = 0; MICRO::kClassified && c < classes; ++c) line(names[c], in_l1<kDense>(c));
  line("512x768->3072", whole(kernel, kDense, 512, 768, 3072, caches));
  line("128x1024->1024", whole(kernel, kDense, 128, 1024, 1024, caches));
  line("16x4096->4096", whole(kernel, kDense, 16, 4096, 4096, caches));
}

}  // namespace

int main() {
  const sparseq::CacheSizes caches{static_cast<std::size_t>(sysconf(_SC_LEVEL1_DCACHE_SIZE)),
                                   static_cast<std::size_t>(sysconf(_SC_LEVEL2_CACHE_SIZE))};
  report<true>(caches);
  report<false>(caches);
}
