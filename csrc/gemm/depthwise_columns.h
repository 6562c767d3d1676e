// Depthwise 3x3 of stride 1 along rows, AVX2: what a column of inputs gives to three outputs is loaded and widened
// once. A column costs three loads, eight shuffles, ten vpmaddwd and eight additions for 16 channels, where a pixel of
// nine taps of its own costs ten, twenty, ten and ten.
#pragma once
#include <cstdint>

#include "../core/int8_avx2.h"

namespace {

class ColumnsAvx2 {
 public:
  static constexpr int kChannels = 16, kStrides = 1;

  // pairs: of `kChannels` channels, as pack_depthwise leaves them: (00, 01), (02, 10), (11, 12), (20, 21), (22, 0).
  ColumnsAvx2(const int32_t* pairs, int64_t padded) {
    for (int v = 0; v < 2; ++v, pairs += Avx2Float::kLanes) {
      __m256i p[5];
      for (int i = 0; i < 5; ++i) p[i] = Avx2Float::load_int(pairs + i * padded);
      upper_[0][v] = _mm256_blend_epi16(p[0], p[1], 0xaa);
      upper_[1][v] = _mm256_or_si256(_mm256_srli_epi32(p[0], 16), _mm256_slli_epi32(p[2], 16));
      upper_[2][v] = _mm256_blend_epi16(p[1], p[2], 0xaa);
      lower_[0][v] = p[3];
      lower_[1][v] = _mm256_slli_epi32(p[4], 16);
    }
  }

  // Sums of `count` neighbouring outputs. rows[i]: the pixels of input row i that they meet, count + 2.
  void sums(const uint8_t* const* const (&rows)[3], int64_t channel, int64_t /*stride*/, int64_t count, int32_t* acc,
            int64_t pitch) const {
    Sum before{}, last{};  // of the outputs that lack one column, two columns
    __m256i below = load(rows[2][0] + channel);
    for (int64_t column = 0; column < count + 2; ++column, acc += pitch) {
      const Bytes upper(load(rows[0][column] + channel), load(rows[1][column] + channel));
      const __m256i next = load(rows[2][column] + channel);
      const Bytes lower(below, next);
      below = next;
      for (int v = 0; v < 2; ++v) {
        const __m256i x = upper.wide(v), y = lower.wide(v);
        if (column >= 2)
          Avx2Float::store_int(
              acc - 2 * pitch + v * Avx2Float::kLanes,
              add(before.v[v], _mm256_madd_epi16(x, upper_[2][v]), _mm256_madd_epi16(y, lower_[1][v])));
        before.v[v] = add(last.v[v], _mm256_madd_epi16(x, upper_[1][v]), _mm256_madd_epi16(y, lower_[0][v]));
        last.v[v] = _mm256_madd_epi16(x, upper_[0][v]);
      }
    }
  }

 private:
  struct Sum {
    __m256i v[2];
  };
  // 16 channels of two pixels, interleaved in 16 bits.
  struct Bytes {
    __m256i x, y;
    Bytes(__m256i x_, __m256i y_) : x(x_), y(y_) {}
    __m256i wide(int v) const {
      return _mm256_shuffle_epi8(v == 0 ? _mm256_unpacklo_epi64(x, y) : _mm256_unpackhi_epi64(x, y),
                                 Avx2Float::interleave());
    }
  };
  static __m256i load(const uint8_t* p) { return _mm256_broadcastsi128_si256(Avx2Float::load16(p)); }
  static __m256i add(__m256i a, __m256i b, __m256i c) { return _mm256_add_epi32(_mm256_add_epi32(a, b), c); }

  __m256i upper_[3][2], lower_[2][2];
};

}  // namespace
