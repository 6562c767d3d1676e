// The affine family's kernels: what a caller passes, and one table of functions per ISA. No torch.
#pragma once

#include <cstdint>

#include "../core/isa.h"

namespace sparseq::affine {

enum class DType { float32 = 0, float16 = 1, bfloat16 = 2 };
constexpr int kDTypes = 3;

enum class ZeroPointKind { none, int32, float32 };

// The tensor in memory order as [outer, channels, inner]; a channel shares one scale. Per tensor:
// channels = 1. Per group: outer = 1, inner = group size.
struct Layout {
  int64_t outer = 1, channels = 1, inner = 0;
  int64_t numel() const { return outer * channels * inner; }
};

struct Problem {
  Layout layout;
  const float* scale = nullptr;      // [channels]
  const void* zero_point = nullptr;  // [channels] or null; float32 ones are rounded and clamped
  ZeroPointKind zero_point_kind = ZeroPointKind::none;
  float quant_min = 0, quant_max = 0;
};

// Reductions are cut into tasks that depend on the layout alone, never on the number of threads, and
// are added up in one order: results do not change with threads or ISA.
constexpr int64_t kSegment = 16384;  // elements of a run handled by one task
constexpr int64_t kNarrow = 16;      // runs shorter than this are reduced by columns
constexpr int64_t kRowBlocks = 64;   // by columns: at most this many blocks of rows
constexpr int64_t kColumns = 64;     // by columns: columns handled by one task

struct Reduction {
  explicit Reduction(const Layout& layout);
  Layout layout;
  bool by_columns;
  int64_t parts;  // by runs: segments of a run; by columns: blocks of rows
  int64_t rows;   // by columns: rows of a block
  int64_t tasks;  // work items
  int64_t slots;  // pairs of partial results
  // f(slot) for every slot that belongs to a channel, in a fixed order
  template <class F>
  void for_each_slot(int64_t channel, F f) const {
    if (by_columns) {
      for (int64_t part = 0; part < parts; ++part)
        for (int64_t j = 0; j < layout.inner; ++j) f((part * layout.channels + channel) * layout.inner + j);
    } else {
      for (int64_t o = 0; o < layout.outer; ++o)
        for (int64_t part = 0; part < parts; ++part) f((o * layout.channels + channel) * parts + part);
    }
  }
};

struct Pair {
  float first, second;
};

// What one call of a histogram kernel counts: rows of `width` neighbours, `stride` elements from one to the next. A
// column has its 1 / limit, and its counters at `first`, a whole number below 2^24: a bin of it is counted there.
struct Counted {
  int64_t rows = 0, width = 0, stride = 0;
  const float* inverse = nullptr;  // [width]
  const float* first = nullptr;    // [width]
  float half = 0;                  // bins / 2; a column has bins + 1 counters, the last for NaN
  uint16_t* places = nullptr;      // for bins up to 32768: [width * kBlockPitch] to write bins down, or null
};
constexpr int64_t kBlockRows = 512;               // with places, this many rows at once:
constexpr int64_t kBlockPitch = kBlockRows + 16;  // apart in the cache's sets

struct Kernels {
  Isa isa;
  // Elementwise, over the flat range [begin, end).
  void (*quantize[kDTypes])(const Problem&, const void* x, uint8_t* q, int64_t begin, int64_t end);
  void (*dequantize_s8[kDTypes])(const Problem&, const int8_t* q, void* y, int64_t begin, int64_t end);
  void (*dequantize_u8[kDTypes])(const Problem&, const uint8_t* q, void* y, int64_t begin, int64_t end);
  void (*fake_quantize[kDTypes])(const Problem&, const void* x, void* y, int64_t begin, int64_t end);
  void (*backward[kDTypes])(const Problem&, const void* grad, const void* x, void* grad_x, int64_t begin, int64_t end);
  // Reductions, over the tasks [begin, end); partials has `slots` pairs.
  void (*learned_backward[kDTypes])(const Problem&, const Reduction&, const void* grad, const void* x, void* grad_x,
                                    Pair* partials, int64_t begin, int64_t end);
  void (*minmax[kDTypes])(const Reduction&, const void* x, Pair* partials, int64_t begin, int64_t end);
  void (*observed[kDTypes])(const Problem&, const Reduction&, const void* x, void* y, Pair* partials, int64_t begin,
                            int64_t end);
  // The elements from `begin` on, as `Counted` says.
  void (*histogram[kDTypes])(const Counted&, const void* x, int64_t begin, uint32_t* counts);
};

const Kernels& kernels_scalar();
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
const Kernels& kernels(Isa isa);

}  // namespace sparseq::affine
