// The canonical 2:4 form: documented, portable, what is saved. Of every 4 consecutive inputs of a row 2 are
// kept. A row is one output channel of a linear layer, or one (output channel, tap) of a convolution.
//
//   groups = ceil(columns / 4)
//   values   [rows, 2 * groups]                 the kept values, ascending column order
//   indices  uint8 [rows, ceil(groups / 2)]     4 bits a group, low nibble first: first kept position
//                                               (0..2) in bits 0-1, second (1..3) in bits 2-3
//
// first < second always. A group with fewer than two non-zeros is filled up with zeros, at the positions that
// torch and CUTLASS choose: first is the lowest non-zero, but at most 2; second the other one, else 2, or 3 after
// a 2. Columns past the end (columns % 4 != 0) may be named only with value 0. The unused high nibble after an odd
// number of groups is 0.
//
// Elements are bits: int8_t, uint16_t for float16 and bfloat16, uint32_t for float32. -0 is a zero, and packed as
// +0; NaN is not.
#pragma once
#include <cstdint>

namespace sparseq {

enum class Format24 : int32_t { ok = 0, not_2_4, bad_index, bad_padding };

// What is wrong, if anything, and in which group of 4 of which row.
struct Fault24 {
  Format24 error = Format24::ok;
  int64_t row = 0, group = 0;
  bool ok() const { return error == Format24::ok; }
};

constexpr int64_t groups_24(int64_t columns) { return columns / 4 + (columns % 4 != 0); }
constexpr int64_t values_24(int64_t columns) { return 2 * groups_24(columns); }
constexpr int64_t index_bytes_24(int64_t columns) { return (groups_24(columns) + 1) / 2; }

// A dense weight [outputs, columns, taps]; its row output * taps + tap holds every taps-th element. One that is
// stored row by row has one tap.
struct Shape24 {
  int64_t outputs = 0, columns = 0, taps = 1;
  int64_t rows() const { return outputs * taps; }
};

// mask = 1, in the weight's order, for the 2 of greatest magnitude of each group of 4, earlier columns first
// among equals; NaN counts as the smallest. A tail shorter than 4 keeps at most 2. infinity: its bits in the
// weight's type. Outputs [begin, end).
template <class T>
void mask_24(const T* weight, T infinity, uint8_t* mask, const Shape24& shape, int64_t begin, int64_t end);

// Rows [begin, end); stops at the first group that has more than 2 non-zeros. The buffers are sized as above.
template <class T>
Fault24 pack_24(const T* weight, const Shape24& shape, T* values, uint8_t* indices, int64_t begin, int64_t end);

// Rows [begin, end), of buffers sized as above but otherwise untrusted: nothing is written before all of them
// proved to be sound.
template <class T>
Fault24 unpack_24(const T* values, const uint8_t* indices, const Shape24& shape, T* weight, int64_t begin, int64_t end);

const char* describe(Format24 error);

}  // namespace sparseq
