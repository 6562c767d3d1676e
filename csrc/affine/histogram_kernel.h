// The loops of histogram over the Vec trait. Included by kernel.h alone, after what they use of it.
#pragma once

namespace sparseq::affine {
namespace {

// The bins of sixteen lanes, each moved to where its column's counters begin.
struct Places {
  explicit Places(float half)
      : bins{Vec::set1(half), Vec::set1(0), Vec::set1(1), Vec::set1(std::numeric_limits<float>::infinity())} {}
  __attribute__((always_inline)) void of(Vec x, Vec inverse, Vec first, int32_t* at) const {
    (formula::bin(x, inverse, bins) + first).store(at);
  }
  formula::Bins<Vec> bins;
};

template <class T>
void count_rows(const Counted& c, const T* p, uint32_t* counts) {
  const Places places(c.half);
  const auto add = [&](Vec x, Vec inverse, Vec first, int64_t n) {
    alignas(64) int32_t at[16];
    places.of(x, inverse, first, at);
    if (n == 16) {
#pragma GCC unroll 16
      for (int l = 0; l < 16; ++l) ++counts[at[l]];
    } else {
      for (int64_t l = 0; l < n; ++l) ++counts[at[l]];
    }
  };
  if (c.width == 16) {  // a long run of one channel
    const Vec inverse = Vec::load(c.inverse), first = Vec::load(c.first);
    for (int64_t row = 0; row < c.rows; ++row, p += c.stride) add(Vec::load(p), inverse, first, 16);
    return;
  }
  for (int64_t row = 0; row < c.rows; ++row, p += c.stride) {
    int64_t i = 0;
    for (; i + 16 <= c.width; i += 16) add(Vec::load(p + i), Vec::load(c.inverse + i), Vec::load(c.first + i), 16);
    if (i == c.width) continue;
    const int64_t n = c.width - i;
    add(load_some(p + i, n), load_some(c.inverse + i, n), load_some(c.first + i, n), n);
  }
}

constexpr int64_t kAhead = 16;  // rows to fetch ahead: where each is a page of its own, no hardware does it

// Where all the counters are too many for the first-level cache: the bins of a block of rows are written down,
// transposed, and each column is then counted by itself.
template <class T>
void count_columns(const Counted& c, const T* p, uint32_t* counts) {
  const Places places(c.half);
  const Vec none = Vec::set1(0);
  const auto write_down = [&](Vec x, Vec inverse, uint16_t* to, int64_t n) {
    alignas(64) int32_t at[16];
    places.of(x, inverse, none, at);
    if (n == 16) {
#pragma GCC unroll 16
      for (int l = 0; l < 16; ++l) to[l * kBlockPitch] = uint16_t(at[l]);
    } else {
      for (int64_t l = 0; l < n; ++l) to[l * kBlockPitch] = uint16_t(at[l]);
    }
  };
  for (int64_t row = 0; row < c.rows; row += kBlockRows) {
    const int64_t rows = c.rows - row < kBlockRows ? c.rows - row : kBlockRows;
    for (int64_t r = 0; r < rows; ++r, p += c.stride) {
      if (row + r + kAhead < c.rows)
        for (int64_t i = 0; i < c.width; i += int64_t(64 / sizeof(T))) __builtin_prefetch(p + kAhead * c.stride + i);
      uint16_t* to = c.places + r;
      int64_t i = 0;
      for (; i + 16 <= c.width; i += 16)
        write_down(Vec::load(p + i), Vec::load(c.inverse + i), to + i * kBlockPitch, 16);
      if (i == c.width) continue;
      const int64_t n = c.width - i;
      write_down(load_some(p + i, n), load_some(c.inverse + i, n), to + i * kBlockPitch, n);
    }
    for (int64_t i = 0; i < c.width; ++i) {
      uint32_t* own = counts + int64_t(c.first[i]);
      const uint16_t* of_column = c.places + i * kBlockPitch;
      for (int64_t r = 0; r < rows; ++r) ++own[of_column[r]];
    }
  }
}

template <class T>
void histogram(const Counted& c, const void* x, int64_t begin, uint32_t* counts) {
  const T* p = static_cast<const T*>(x) + begin;
  if (c.places)
    count_columns(c, p, counts);
  else
    count_rows(c, p, counts);
}

}  // namespace
}  // namespace sparseq::affine
