// Depthwise 3x3 of stride 1 or 2 along rows, AVX-512-VNNI: a column of inputs becomes (top, middle, bottom, 0) of 16
// channels, one vpdpbusd for each output that it meets. A column costs three loads, two of them inserts, and two
// shuffles, where a pixel of nine taps of its own costs ten widening loads and twenty more instructions.
#pragma once
#include <cstdint>

#include "../core/int8_avx512.h"

namespace {

class ColumnsAvx512 {
 public:
  static constexpr int kChannels = 16, kStrides = 2;
  using Vec = Avx512Vnni::Vec;

  // pairs: of `kChannels` channels, as pack_depthwise leaves them: (00, 01), (02, 10), (11, 12), (20, 21), (22, 0).
  ColumnsAvx512(const int32_t* pairs, int64_t padded) {
    const Vec byte = SPARSEQ_512(set1_epi32)(0xff);
    for (int j = 0; j < 3; ++j) {
      weight_[j] = Avx512Vnni::zero();
      for (int i = 0; i < 3; ++i) {
        const int tap = 3 * i + j;
        const Vec pair = Avx512Vnni::load_acc(pairs + tap / 2 * padded);
        const Vec value = SPARSEQ_512(and_si512)(SPARSEQ_512(srli_epi32)(pair, tap % 2 * 16), byte);
        weight_[j] = SPARSEQ_512(or_si512)(weight_[j], SPARSEQ_512(slli_epi32)(value, 8 * i));
      }
    }
    dwords_ = SPARSEQ_512(setr_epi32)(0, 4, 8, 0, 1, 5, 9, 0, 2, 6, 10, 0, 3, 7, 11, 0);
    bytes_ = SPARSEQ_512(set4_epi32)(0x800b0703, 0x800a0602, 0x80090501, 0x80080400);
  }

  // Sums of `count` outputs side by side. rows[i]: the pixels of input row i that they meet, (count - 1) * stride + 3.
  void sums(const uint8_t* const* const (&rows)[3], int64_t channel, int64_t stride, int64_t count, int32_t* acc,
            int64_t pitch) const {
    const auto column = [&](int64_t at) SPARSEQ_INLINE {
      return interleave(rows[0][at] + channel, rows[1][at] + channel, rows[2][at] + channel);
    };
    const auto dot = [&](Vec sum, Vec x, int j) SPARSEQ_INLINE {
      Avx512Vnni::dot(sum, x, weight_[j]);
      return sum;
    };
    Vec x = column(0);
    if (stride == 2) {
      for (int64_t i = 0; i < count; ++i, acc += pitch) {
        const Vec middle = column(2 * i + 1), next = column(2 * i + 2);
        Avx512Vnni::store_acc(acc, dot(dot(dot(Avx512Vnni::zero(), x, 0), middle, 1), next, 2));
        x = next;
      }
      return;
    }
    Vec last = dot(Avx512Vnni::zero(), x, 0);
    x = column(1);
    Vec before = dot(last, x, 1);
    last = dot(Avx512Vnni::zero(), x, 0);
    for (int64_t i = 0; i < count; ++i, acc += pitch) {
      x = column(i + 2);
      Avx512Vnni::store_acc(acc, dot(before, x, 2));
      before = dot(last, x, 1);
      last = dot(Avx512Vnni::zero(), x, 0);
    }
  }

 private:
  SPARSEQ_INLINE Vec interleave(const uint8_t* top, const uint8_t* middle, const uint8_t* bottom) const {
    Vec x = SPARSEQ_512(castsi128_si512)(Avx512Vnni::load16(top));
    x = SPARSEQ_512(inserti32x4)(x, Avx512Vnni::load16(middle), 1);
    x = SPARSEQ_512(inserti32x4)(x, Avx512Vnni::load16(bottom), 2);
    return Avx512Vnni::shuffle(SPARSEQ_512(permutexvar_epi32)(dwords_, x), bytes_);
  }
  Vec weight_[3], dwords_, bytes_;
};

}  // namespace
