// 2:4 weights made dense in the cache, of panels of 8 channels.
#pragma once
#include <cstdint>

#include "../core/int8_avx2.h"
#include "packed.h"
#include "unroll.h"

namespace {

struct Dense24Avx2 {
  using Vec = __m256i;

  // Two panels without classes, [inputs / 4][16 channels][4].
  static void expand(const sparseq::Tiles& w, int64_t pair, uint8_t* to) {
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t panel = 2 * pair + half;
      for (const sparseq::Chunk* c = w.chunk + panel * w.chunks; c < w.chunk + (panel + 1) * w.chunks; ++c)
        expand(w, *c, to + 32 * half);
    }
  }

 private:
  static constexpr int64_t kFour = 64;  // bytes from four to four

  static Vec load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const Vec*>(p)); }
  static void store(uint8_t* p, Vec x) { _mm256_storeu_si256(reinterpret_cast<Vec*>(p), x); }
  // A byte of each dword, in all four of its places.
  static Vec spread(Vec x, int byte) {
    const Vec first = _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404, 0x08080808, 0x0c0c0c0c);
    return _mm256_shuffle_epi8(x, _mm256_add_epi8(first, _mm256_set1_epi8(static_cast<int8_t>(byte))));
  }
  // A value where the place is its position, else 0.
  static Vec at(Vec position, Vec value, Vec places) {
    return _mm256_and_si256(_mm256_cmpeq_epi8(position, places), value);
  }

  // sparse24/pack.cpp's order: fields of 2 bits, one after the other in the order of the steps.
  static void expand(const sparseq::Tiles& w, const sparseq::Chunk& chunk, uint8_t* to) {
    const Vec places = _mm256_set1_epi32(0x03020100), field = _mm256_set1_epi8(3);
    const uint8_t* from = w.data + chunk.data;
    Vec positions = _mm256_setzero_si256();
    for (uint32_t b = 0; b < chunk.blocks(); ++b) {
      if (b % 2 == 0) positions = load(from), from += 32;
      const sparseq::BlockRef& ref = w.refs[chunk.refs + b];
      uint8_t* four = to + (ref.tap * (w.shape.in_channels / 4) + ref.quarter) * kFour;
      for (int step = 0; step < 2; ++step, from += 32) {
        const Vec values = load(from), fields = _mm256_and_si256(positions, field);
        positions = _mm256_srli_epi32(positions, 2);
        unroll<2>([&](auto h) SPARSEQ_INLINE {
          const Vec first = at(spread(fields, 2 * h), spread(values, 2 * h), places);
          const Vec second = at(spread(fields, 2 * h + 1), spread(values, 2 * h + 1), places);
          store(four, _mm256_or_si256(first, second));
          four += kFour;
        });
      }
    }
  }
};

}  // namespace
