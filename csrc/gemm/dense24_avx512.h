// 2:4 weights made dense in the cache, where products know no sparsity: AMX's, and Winograd's.
#pragma once
#include <cstdint>

#include "../core/names_512.h"
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

// A panel, [inputs / 4][16 channels][4].
inline void expand_sparse24(const sparseq::Tiles& w, int64_t panel, uint8_t* to) {
  const auto field = SPARSEQ_512(set1_epi8)(3);
  const auto channel =
      SPARSEQ_512(set4_epi32)(0x0c0c0c0c, 0x08080808, 0x04040404, 0);  // vpshufb counts within 16 bytes
  const auto first = SPARSEQ_512(loadu_si512)(kSources24.bytes[0]);
  const auto second = SPARSEQ_512(loadu_si512)(kSources24.bytes[1]);
  const auto group = [&](auto positions, auto sources, auto values) SPARSEQ_INLINE {  // vpermd reads 4 bits
    const auto bytes = SPARSEQ_512(or_si512)(SPARSEQ_512(permutexvar_epi32)(positions, sources), channel);
    SPARSEQ_512(storeu_si512)(to, SPARSEQ_512(shuffle_epi8)(values, bytes));
    to += 64;
  };
  for (int64_t c = 0; c < w.chunks; ++c) {
    const sparseq::Chunk& chunk = w.chunk[panel * w.chunks + c];
    const uint8_t* from = w.data + chunk.data;
    const auto step = [&](auto positions) SPARSEQ_INLINE {  // 8 inputs
      const auto fields = SPARSEQ_512(and_si512)(positions, field);
      const auto both = SPARSEQ_512(or_si512)(fields, SPARSEQ_512(srli_epi32)(fields, 6));
      const auto values = SPARSEQ_512(loadu_si512)(from);
      group(both, first, values);
      group(SPARSEQ_512(srli_epi32)(both, 16), second, values);
      from += 64;
    };
    for (uint32_t b = 0; b < chunk.count[0]; b += 2) {  // blocks, of which two share a vector of positions
      const auto positions = SPARSEQ_512(loadu_si512)(from);
      from += 64;
      step(positions);
      step(SPARSEQ_512(srli_epi32)(positions, 2));
      if (b + 1 == chunk.count[0]) break;
      step(SPARSEQ_512(srli_epi32)(positions, 4));
      step(SPARSEQ_512(srli_epi32)(positions, 6));
    }
  }
}

}  // namespace
