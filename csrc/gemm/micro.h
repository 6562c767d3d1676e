// What the micro-kernels of all ISAs share.
#pragma once
#include <cstdint>

#include "packed.h"
#include "unroll.h"

namespace {

// The row pointers of a block's tap. Blocks of one tap follow each other: a branch, so that no load waits for
// a multiplication (Zen 5, 2:4 in L1: 700 against 610 GMAC/s).
class TapRows {
 public:
  explicit TapRows(const sparseq::Operands& o) : all_(o.rows), rows_(o.rows), tile_(o.tile) {}
  SPARSEQ_INLINE const uint8_t* const* at(int tap) {
    if (tap != tap_) {
      tap_ = tap;
      rows_ = all_ + tap * tile_;
    }
    return rows_;
  }

 private:
  const uint8_t* const* all_;
  const uint8_t* const* rows_;
  int64_t tile_;
  int tap_ = 0;
};

// Lines of weights that will be wanted soon; null where none are.
template <int kBytes>
SPARSEQ_INLINE inline void prefetch(const uint8_t* next, int64_t offset) {
  if (next == nullptr) return;
  unroll<(kBytes + 63) / 64>([&](auto line) SPARSEQ_INLINE { __builtin_prefetch(next + offset + 64 * line, 0, 3); });
}

}  // namespace
