// INT4 packed two to a byte, on a GPU. No torch header. Where rows have an even number of columns the whole
// tensor is one run of pairs: 16 values and 8 bytes a thread. Otherwise a thread handles one byte.
#pragma once

#include "../core/device.cuh"

namespace sparseq::affine {
namespace {

constexpr int kPackThreads = 256;
constexpr int kPackBytes = 8;  // packed bytes a thread handles: the unpacked side is one 16-byte access

struct Int4Rows {
  int64_t columns, bytes;  // values of a row; packed bytes of the whole tensor
  Divider row_bytes;
};

// Four values, one to a byte, in: their nibbles, two to a byte, in bytes 0 and 2.
__device__ __forceinline__ uint32_t pair_up(uint32_t values) {
  const uint32_t nibbles = values & 0x0f0f0f0fu;
  return nibbles | nibbles >> 4;
}

// (v ^ 8) - 8 in every byte: copies bit 3 into the upper four.
__device__ __forceinline__ uint32_t extend_signs(uint32_t nibbles) { return nibbles | (nibbles & 0x08080808u) * 0x1eu; }

template <bool kVector>
__global__ void __launch_bounds__(kPackThreads) pack_int4(const uint8_t* q, uint8_t* packed, Int4Rows rows) {
  constexpr int N = kVector ? kPackBytes : 1;
  const int64_t stride = int64_t(gridDim.x) * kPackThreads * N;
#pragma unroll 1  // blocks are many: a thread seldom comes round twice
  for (int64_t i = (int64_t(blockIdx.x) * kPackThreads + threadIdx.x) * N; i < rows.bytes; i += stride) {
    if (kVector && i + N <= rows.bytes) {
      const uint4 v = __ldg(reinterpret_cast<const uint4*>(q + 2 * i));
      const uint2 out{__byte_perm(pair_up(v.x), pair_up(v.y), 0x6420), __byte_perm(pair_up(v.z), pair_up(v.w), 0x6420)};
      *reinterpret_cast<uint2*>(packed + i) = out;
      continue;
    }
#pragma unroll 1  // what is left of a vector
    for (int64_t b = i; b < i + N && b < rows.bytes; ++b) {
      const int64_t row = rows.row_bytes.divide(b), column = 2 * (b - row * rows.row_bytes.divisor);
      const uint8_t* pair = q + row * rows.columns + column;
      const unsigned second = column + 1 < rows.columns ? pair[1] : 0;
      packed[b] = uint8_t((pair[0] & 15) | second << 4);
    }
  }
}

template <bool kVector>
__global__ void __launch_bounds__(kPackThreads)
    unpack_int4(const uint8_t* packed, uint8_t* q, Int4Rows rows, bool is_signed) {
  constexpr int N = kVector ? kPackBytes : 1;
  const int64_t stride = int64_t(gridDim.x) * kPackThreads * N;
  const auto extend = [&](uint32_t nibbles) { return is_signed ? extend_signs(nibbles) : nibbles; };
#pragma unroll 1  // blocks are many: a thread seldom comes round twice
  for (int64_t i = (int64_t(blockIdx.x) * kPackThreads + threadIdx.x) * N; i < rows.bytes; i += stride) {
    if (kVector && i + N <= rows.bytes) {
      const uint2 v = __ldg(reinterpret_cast<const uint2*>(packed + i));
      const uint32_t a = extend(v.x & 0x0f0f0f0fu), b = extend(v.x >> 4 & 0x0f0f0f0fu);
      const uint32_t c = extend(v.y & 0x0f0f0f0fu), d = extend(v.y >> 4 & 0x0f0f0f0fu);
      // first and second values of the bytes in turn
      const uint4 out{__byte_perm(a, b, 0x5140), __byte_perm(a, b, 0x7362), __byte_perm(c, d, 0x5140),
                      __byte_perm(c, d, 0x7362)};
      *reinterpret_cast<uint4*>(q + 2 * i) = out;
      continue;
    }
#pragma unroll 1  // what is left of a vector
    for (int64_t b = i; b < i + N && b < rows.bytes; ++b) {
      const int64_t row = rows.row_bytes.divide(b), column = 2 * (b - row * rows.row_bytes.divisor);
      uint8_t* pair = q + row * rows.columns + column;
      const uint32_t byte = packed[b];
      pair[0] = uint8_t(extend(byte & 15));
      if (column + 1 < rows.columns) pair[1] = uint8_t(extend(byte >> 4));
    }
  }
}

}  // namespace
}  // namespace sparseq::affine
