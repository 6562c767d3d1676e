// The trait of Winograd's filtering on AVX2: 16 bits for what is multiplied, 32 for sums.
#pragma once
#include <cstdint>

#include "../core/int8_avx2.h"
#include "dense24_avx2.h"
#include "unroll.h"
#include "winograd.h"

namespace {

struct Avx2Words {
  using FloatTrait = Avx2Float;
  using Vec = __m256i;
  static constexpr int kLanes = 8, kWords = 16;
  static constexpr int64_t kGroup = 16;
  static constexpr int kRows = 6;  // of two accumulators each, of 16 registers
  static constexpr double kDirect = 7.2, kDirect24 = 4.5;
  using Narrow = Avx2Words;  // takes any multiple of 16 words

  static const __m256i* vec(const void* p) { return static_cast<const __m256i*>(p); }
  static Vec zero() { return _mm256_setzero_si256(); }
  static Vec load(const void* p) { return _mm256_loadu_si256(vec(p)); }
  static void store(void* p, Vec x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
  static Vec load_u8(const uint8_t* p) { return _mm256_cvtepu8_epi16(Avx2Float::load16(p)); }
  // Of fours of signed bytes the first or the second two.
  template <int Pair>
  static Vec load_pair(const uint8_t* p) {
    constexpr auto words = [](int four) {  // each byte into the upper half of its word
      return 0x0080 | (4 * four + 2 * Pair) << 8 | (0x0080 | (4 * four + 2 * Pair + 1) << 8) << 16;
    };
    const Vec high = _mm256_setr_epi32(words(0), words(1), words(2), words(3), words(0), words(1), words(2), words(3));
    return _mm256_srai_epi16(_mm256_shuffle_epi8(load(p), high), 8);
  }
  static sparseq::winograd::Fours expand_sparse24(const sparseq::Tiles& w, int64_t group, uint8_t* to) {
    Dense24Avx2::expand(w, group, to);
    return {to, 4 * kGroup, kGroup * w.shape.in_channels, 4 * kLanes};
  }
  static Vec broadcast_pair(const int16_t* p) { return Avx2Bytes::broadcast4(reinterpret_cast<const uint8_t*>(p)); }

  static Vec add16(Vec a, Vec b) { return _mm256_add_epi16(a, b); }
  static Vec sub16(Vec a, Vec b) { return _mm256_sub_epi16(a, b); }
  static Vec add32(Vec a, Vec b) { return _mm256_add_epi32(a, b); }
  static Vec sub32(Vec a, Vec b) { return _mm256_sub_epi32(a, b); }
  static Vec mul32(Vec a, uint32_t b) { return _mm256_mullo_epi32(a, _mm256_set1_epi32(static_cast<int32_t>(b))); }
  template <int K>
  static Vec shift_left16(Vec a) {
    return _mm256_slli_epi16(a, K);
  }
  template <int K>
  static Vec shift_right32(Vec a) {
    return _mm256_srai_epi32(a, K);
  }
  // The sums of outputs side by side, of which this is the pair of inputs.
  SPARSEQ_INLINE static void dot(Vec (&sum)[2], const int16_t* pair, const Vec (&w)[2]) {
    const Vec x = broadcast_pair(pair);
    for (int k = 0; k < 2; ++k) Avx2Bytes::accumulate(sum[k], _mm256_madd_epi16(x, w[k]));
  }
};

}  // namespace
