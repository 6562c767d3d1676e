// 2:4 weights made dense in the cache, where products know no sparsity: AMX's, and Winograd's.
#pragma once
#include <cstdint>

#include "../core/int8_avx512.h"
#include "packed.h"
#include "unroll.h"

namespace {

// Of a group of 4 inputs, by its values' positions p and q, p + 4 q: where each of its bytes is taken from, or 0. The
// values are bytes 0 and 1 of a channel's four, or 2 and 3.
struct Sources24 {
  alignas(64) uint8_t bytes[2][16][4];
};
constexpr Sources24 kSources24 = [] {
  Sources24 table{};
  for (int half = 0; half < 2; ++half)
    for (int n = 0; n < 16; ++n)
      for (int i = 0; i < 4; ++i)
        table.bytes[half][n][i] = static_cast<uint8_t>(i == n % 4 ? 2 * half : i == n / 4 ? 2 * half + 1 : 0x80);
  return table;
}();

// Neighbouring panels to [panels][inputs / 4][16 channels][4], some at a time.
class Expansion24 {
 public:
  Expansion24() = default;
  Expansion24(const sparseq::Tiles& w, int64_t panel, int64_t panels)
      : data_(w.data), chunk_(w.chunk + panel * w.chunks), end_(chunk_ + panels * w.chunks) {
    begin();
  }
  bool any() const { return chunk_ != end_; }
  // Two blocks, which share a vector of positions, or a chunk's last one; the end of the 512 or 256 bytes.
  SPARSEQ_INLINE uint8_t* some(uint8_t* to) {
    const auto positions = SPARSEQ_512(loadu_si512)(from_);
    __builtin_prefetch(from_ + kAhead, 0, 3);  // from_ passes five lines
    for (int line = 1; line < 5; ++line) __builtin_prefetch(from_ + kAhead + 64 * line, 0, 3);
    step(positions, from_ + 64, to);
    step(SPARSEQ_512(srli_epi32)(positions, 2), from_ + 128, to + 128);
    if (blocks_ > 1) {
      step(SPARSEQ_512(srli_epi32)(positions, 4), from_ + 192, to + 256);
      step(SPARSEQ_512(srli_epi32)(positions, 6), from_ + 256, to + 384);
    }
    const int64_t some = blocks_ > 1 ? 2 : 1;
    from_ += 320, blocks_ -= some;
    if (blocks_ == 0) ++chunk_, begin();
    return to + 256 * some;
  }
  void all(uint8_t* to) {
    while (any()) to = some(to);
  }

 private:
  static constexpr int64_t kAhead = 4096;  // bytes; 2048 and 8192 were as good

  void begin() {
    while (any() && chunk_->count[0] == 0) ++chunk_;
    if (any()) from_ = data_ + chunk_->data, blocks_ = chunk_->count[0];
  }
  // 8 inputs, from 64 bytes to 128.
  SPARSEQ_INLINE static void step(Vec512 positions, const uint8_t* from, uint8_t* to) {
    const auto channel =
        SPARSEQ_512(set4_epi32)(0x0c0c0c0c, 0x08080808, 0x04040404, 0);  // vpshufb counts within 16 bytes
    const auto fields = SPARSEQ_512(and_si512)(positions, SPARSEQ_512(set1_epi8)(3));
    const auto both = SPARSEQ_512(or_si512)(fields, SPARSEQ_512(srli_epi32)(fields, 6));
    const auto values = SPARSEQ_512(loadu_si512)(from);
    const auto group = [&](auto select, const auto& sources) SPARSEQ_INLINE {  // vpermd reads 4 bits
      const auto bytes = SPARSEQ_512(permutexvar_epi32)(select, SPARSEQ_512(loadu_si512)(sources));
      return SPARSEQ_512(shuffle_epi8)(values, SPARSEQ_512(or_si512)(bytes, channel));
    };
    SPARSEQ_512(storeu_si512)(to, group(both, kSources24.bytes[0]));
    SPARSEQ_512(storeu_si512)(to + 64, group(SPARSEQ_512(srli_epi32)(both, 16), kSources24.bytes[1]));
  }

  const uint8_t* data_ = nullptr;
  const sparseq::Chunk *chunk_ = nullptr, *end_ = nullptr;
  const uint8_t* from_ = nullptr;
  int64_t blocks_ = 0;  // left in the chunk
};

}  // namespace
