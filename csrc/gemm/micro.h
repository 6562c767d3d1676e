// What the micro-kernels of all ISAs share.
#pragma once
#include <cstdint>
#include <type_traits>

#include "packed.h"
#include "unroll.h"

namespace {

// Where a block's inputs lie: at(tap, offset)[r] for the row r, a constant.

// By a table of pointers. Blocks of one tap follow each other: a branch, so that no load waits for a
// multiplication (Zen 5, 2:4 in L1: 700 against 610 GMAC/s).
class TapRows {
 public:
  struct At {
    const uint8_t* const* rows;
    uint64_t offset;
    SPARSEQ_INLINE const uint8_t* operator[](int r) const { return rows[r] + offset; }
  };
  explicit TapRows(const sparseq::Operands& o) : all_(o.rows), rows_(o.rows), tile_(o.tile) {}
  SPARSEQ_INLINE At at(int tap, uint64_t offset) {
    if (tap != tap_) {
      tap_ = tap;
      rows_ = all_ + tap * tile_;
    }
    return {rows_, offset};
  }

 private:
  const uint8_t* const* all_;
  const uint8_t* const* rows_;
  int64_t tile_;
  int tap_ = 0;
};

// Of one tap, rows at equal distances: addresses are sums, for which no pointer is loaded (Zen 3, AVX2 in L1: dense
// pairs 92 against 87 GMAC/s, quads 110 against 103), of more rows than there are registers for pointers (Ice Lake,
// AVX-512: 2:4 layers of 12 rows a tile 6 % faster than of 8 by pointers).
class StridedRows {
 public:
  struct At {
    const uint8_t* third[4];  // rows 0, 3, 6 and 9
    int64_t pitch;
    template <int R>
    SPARSEQ_INLINE const uint8_t* operator[](std::integral_constant<int, R>) const {
      static_assert(R < 12);
      return third[R / 3] + R % 3 * pitch;
    }
  };
  explicit StridedRows(const sparseq::Operands& o) : row_(o.row), pitch_(o.pitch), three_(3 * o.pitch) {}
  SPARSEQ_INLINE At at(int, uint64_t offset) const {
    const uint8_t* first = row_ + offset;
    return {{first, first + three_, first + 2 * three_, first + 3 * three_}, pitch_};
  }

 private:
  const uint8_t* row_;
  int64_t pitch_, three_;
};

// Lines of weights that will be wanted soon; null where none are.
template <int kBytes>
SPARSEQ_INLINE inline void prefetch(const uint8_t* next, int64_t offset) {
  if (next == nullptr) return;
  unroll<(kBytes + 63) / 64>([&](auto line) SPARSEQ_INLINE { __builtin_prefetch(next + offset + 64 * line, 0, 3); });
}

}  // namespace
