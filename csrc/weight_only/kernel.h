// The loops of both products, written once. Included by each ISA file after the Vec trait and what that file
// adds to it:
//
//   Vec fma(a, b, c)          a * b + c, rounded once
//   pin(Vec&)                 keeps a sum in its register and sums in the order written
//   float sum(Vec)            lane i + lane i + 8, then 4, 2, 1 apart
//   Base(problem)             what a nibble means, and how scales are spread
//   Vec spread<T>(p, base)    lane i: p[i >> base.shift], reading no further than that
//   Codes(p, base)            128 nibbles of 64 bytes; lane i holds those of bytes 4 i to 4 i + 3
//   Whole, Spread             a chunk's scale and zero point: weight<j>(codes) is the lanes' j-th nibble,
//                             (float(q) - float(zero)) * scale, as dequantize has it
//   Picks(word)               2-bit positions of 16 kept values, two a group of 4 columns
//   Vec select(a, b, picks)   what the 16 meet among 32 columns
//   kOutputs[m]               outputs computed at once for m rows of x
//
// Rows of a weight are too short for the hardware to see what comes: each step prefetches the same place of the
// next block of outputs (measured on Zen 5, one row, groups of 32: 0.43 ms; 1.7 without). Past the end it does nothing.
//
// All of it has internal linkage.
#pragma once

#include "../gemm/unroll.h"
#include "weight_only.h"

namespace sparseq::weight_only {
namespace {

constexpr int kTogether = 4;  // rows of x at once, at most

template <int R, int M>
struct Tile {
  Vec acc[R][M];

  SPARSEQ_INLINE Tile() {
    unroll<R * M>([&](auto i) SPARSEQ_INLINE { acc[i / M][i % M] = Vec::set1(0); });
  }

  SPARSEQ_INLINE void add(int r, int m, Vec w, Vec x) {
    acc[r][m] = fma(w, x, acc[r][m]);
    pin(acc[r][m]);
  }

  SPARSEQ_INLINE void finish(const Linear& linear, int64_t output, int64_t row) const {
    unroll<R>([&](auto r) SPARSEQ_INLINE {
      const float bias = linear.bias ? linear.bias[output + r] : 0.0f;
      unroll<M>([&](auto m) SPARSEQ_INLINE {
        const float y = sum(acc[r][m]) + bias;
        const int64_t at = (row + m) * linear.outputs + output + r;
        switch (linear.type) {
          case Element::f16: static_cast<Half*>(linear.y)[at] = from_float<Half>(y); break;
          case Element::bf16: static_cast<BFloat16*>(linear.y)[at] = from_float<BFloat16>(y); break;
          default: static_cast<float*>(linear.y)[at] = y;
        }
      });
    });
  }
};

// One chunk of one output into w, [8][16]: ends of rows, and groups that fit no vector.
[[gnu::noinline]] void decode(const Int4& p, const Base& base, int64_t output, int64_t chunk, float* w) {
  const int64_t depth = p.linear.depth, first = chunk * kChunk;
  const int64_t count = depth - first < kChunk ? depth - first : kChunk;
  const uint8_t* bytes = p.packed + output * ((depth + 1) / 2) + first / 2;
  const float* scale = p.scale + output * p.groups;
  const int32_t* zero = p.zero ? p.zero + output * p.groups : nullptr;
  if (p.kind == Groups::any) {
    int64_t group = first / p.group_size, left = p.group_size - first % p.group_size;
    for (int64_t k = 0; k < kChunk; ++k) {
      float value = 0;
      if (k < count) {
        const int nibble = (bytes[k / 2] >> (4 * (k % 2))) & 15, flip = p.is_signed ? 8 : 0;
        value = (float((nibble ^ flip) - flip) - (zero ? float(zero[group]) : 0.0f)) * scale[group];
        if (--left == 0) ++group, left = p.group_size;
      }
      w[16 * (k % 8) + k / 8] = value;
    }
    return;
  }
  alignas(64) uint8_t some[64] = {};
  float lane_number[16], scales[16], zeros[16];
  std::memcpy(some, bytes, size_t((count + 1) / 2));
  for (int lane = 0; lane < 16; ++lane) {
    const int64_t column = first + 8 * lane < depth ? first + 8 * lane : first;
    const int64_t group = p.groups == 1 ? 0 : column / p.group_size;
    lane_number[lane] = float(lane);
    scales[lane] = scale[group];
    zeros[lane] = zero ? float(zero[group]) : 0.0f;
  }
  const Codes codes(some, base);
  const Spread<true> grid(base, Vec::load(scales), Vec::load(zeros));
  const Vec lanes = Vec::load(lane_number);
  unroll<8>([&](auto j) SPARSEQ_INLINE {
    // nothing past the end may count, be the scale infinite
    const Vec last = Vec::set1(float((count + 7 - j) / 8 - 1));
    keep(between(lanes, Vec::set1(0), last), grid.template weight<j>(codes)).store(w + 16 * j);
  });
}

template <int R, int M, class Grid>
void int4_tile(const Int4& p, const Base& base, int64_t output, int64_t row) {
  const int64_t bytes = (p.linear.depth + 1) / 2, padded = p.linear.padded;
  const int64_t all = padded / kChunk, fast = Grid::kind == p.kind ? p.linear.depth / kChunk : 0;
  const uint8_t* packed = p.packed + output * bytes;
  const float* x = p.linear.x + row * padded;
  Tile<R, M> tile;
  const auto step = [&](int64_t chunk, auto&& weight) SPARSEQ_INLINE {
    unroll<8>([&](auto j) SPARSEQ_INLINE {
      Vec columns[M];
      unroll<M>([&](auto m) SPARSEQ_INLINE { columns[m] = Vec::load(x + m * padded + chunk * kChunk + 16 * j); });
      unroll<R>([&](auto r) SPARSEQ_INLINE {
        const Vec w = weight(r, j);
        unroll<M>([&](auto m) SPARSEQ_INLINE { tile.add(r, m, w, columns[m]); });
      });
    });
  };
  const float* scale = p.scale + output * p.groups;
  const int32_t* zero = p.zero ? p.zero + output * p.groups : nullptr;
  int64_t chunk = 0;
  for (int64_t group = 0; chunk < fast; group += p.step) {
    Grid grid[R];
    unroll<R>([&](auto r) SPARSEQ_INLINE {
      const int64_t at = r * p.groups + group;
      grid[r] = Grid(base, scale + at, zero ? zero + at : nullptr);
      __builtin_prefetch(scale + at + kBlock * p.groups);
      if (zero) __builtin_prefetch(zero + at + kBlock * p.groups);
    });
    const int64_t end = chunk + p.span < fast ? chunk + p.span : fast;
    for (; chunk < end; ++chunk) {
      Codes codes[R];
      unroll<R>([&](auto r) SPARSEQ_INLINE {
        const uint8_t* at = packed + r * bytes + 64 * chunk;
        codes[r] = Codes(at, base);
        __builtin_prefetch(at + kBlock * bytes);
      });
      step(chunk, [&](auto r, auto j) SPARSEQ_INLINE { return grid[r].template weight<j>(codes[r]); });
    }
  }
  for (; chunk < all; ++chunk) {
    alignas(64) float w[R][kChunk];
    for (int r = 0; r < R; ++r) decode(p, base, output + r, chunk, w[r]);
    step(chunk, [&](auto r, auto j) SPARSEQ_INLINE { return Vec::load(w[r] + 16 * j); });
  }
  tile.finish(p.linear, output, row);
}

// V: float, Half or BFloat16, the type of the values.
template <class V, int R, int M>
void sparse_tile(const Sparse& p, int64_t output, int64_t row) {
  const int64_t groups = (p.linear.depth + 3) / 4, kept = 2 * groups, bytes = (groups + 1) / 2;
  const int64_t padded = p.linear.padded;
  const V* values = static_cast<const V*>(p.values) + output * kept;
  const float* x = p.linear.x + row * padded;
  const uint8_t* indices = p.indices + output * bytes;
  Tile<R, M> tile;
  const auto step = [&](int64_t i, auto&& value, auto&& word) SPARSEQ_INLINE {
    Vec w[R];
    Picks picks[R];
    unroll<R>([&](auto r) SPARSEQ_INLINE {
      w[r] = value(r);
      picks[r] = Picks(word(r));
    });
    unroll<M>([&](auto m) SPARSEQ_INLINE {
      const float* from = x + m * padded + i * kStep;
      const Vec low = Vec::load(from), high = Vec::load(from + 16);
      unroll<R>([&](auto r) SPARSEQ_INLINE { tile.add(r, m, w[r], select(low, high, picks[r])); });
    });
  };
  int64_t i = 0;
  for (; i < kept / 16; ++i) {
    step(
        i,
        [&](auto r) SPARSEQ_INLINE {
          const V* at = values + r * kept + 16 * i;
          __builtin_prefetch(at + kBlock * kept);
          return Vec::load(at);
        },
        [&](auto r) SPARSEQ_INLINE {
          uint32_t word;
          std::memcpy(&word, indices + r * bytes + 4 * i, 4);
          return word;
        });
  }
  if (kept % 16) {  // the missing values are 0 and meet the zeros past x's end
    float some[R][16] = {};
    uint32_t words[R] = {};
    for (int r = 0; r < R; ++r) {
      for (int64_t k = 16 * i; k < kept; ++k) some[r][k - 16 * i] = to_float(values[r * kept + k]);
      std::memcpy(&words[r], indices + r * bytes + 4 * i, size_t(bytes - 4 * i));
    }
    step(i, [&](auto r) SPARSEQ_INLINE { return Vec::load(some[r]); }, [&](auto r) SPARSEQ_INLINE { return words[r]; });
  }
  tile.finish(p.linear, output, row);
}

// tile(R, M, output, row) over outputs [begin, end) and all rows, panel after panel of x.
template <class F>
void over_tiles(const Linear& linear, int64_t begin, int64_t end, F tile) {
  const int64_t fitting = kPanel / 4 / (linear.padded ? linear.padded : 1) / kTogether * kTogether;
  const int64_t panel = fitting > kTogether ? fitting : kTogether;
  const auto outputs = [&](auto m, int64_t from, int64_t to, int64_t row) {
    constexpr int R = kOutputs[m];
    for (; from + R <= to; from += R) tile(std::integral_constant<int, R>{}, m, from, row);
    for (; from < to; ++from) tile(std::integral_constant<int, 1>{}, m, from, row);
  };
  for (int64_t first = 0; first < linear.count; first += panel) {
    const int64_t last = first + panel < linear.count ? first + panel : linear.count;
    for (int64_t block = begin; block < end; block += kBlock) {
      const int64_t to = block + kBlock < end ? block + kBlock : end;
      for (int64_t row = first; row < last; row += kTogether) {
        switch (last - row) {
          case 1: outputs(std::integral_constant<int, 1>{}, block, to, row); break;
          case 2: outputs(std::integral_constant<int, 2>{}, block, to, row); break;
          case 3: outputs(std::integral_constant<int, 3>{}, block, to, row); break;
          default: outputs(std::integral_constant<int, kTogether>{}, block, to, row);
        }
      }
    }
  }
}

template <class Grid>
void int4_with(const Int4& p, int64_t begin, int64_t end) {
  const Base base(p);
  over_tiles(p.linear, begin, end,
             [&](auto r, auto m, int64_t output, int64_t row) { int4_tile<r, m, Grid>(p, base, output, row); });
}

void int4(const Int4& p, int64_t begin, int64_t end) {
  if (p.kind != Groups::spread)
    int4_with<Whole>(p, begin, end);
  else if (p.zero)
    int4_with<Spread<true>>(p, begin, end);
  else
    int4_with<Spread<false>>(p, begin, end);
}

template <class V>
void sparse_of(const Sparse& p, int64_t begin, int64_t end) {
  over_tiles(p.linear, begin, end,
             [&](auto r, auto m, int64_t output, int64_t row) { sparse_tile<V, r, m>(p, output, row); });
}

void sparse(const Sparse& p, int64_t begin, int64_t end) {
  switch (p.type) {
    case Element::f16: return sparse_of<Half>(p, begin, end);
    case Element::bf16: return sparse_of<BFloat16>(p, begin, end);
    default: return sparse_of<float>(p, begin, end);
  }
}

constexpr Kernels make_kernels(Isa isa) { return {isa, int4, sparse}; }

}  // namespace
}  // namespace sparseq::weight_only
