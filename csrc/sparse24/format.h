// The canonical 2:4 form: documented, portable, what is saved. Of every 4 consecutive inputs of a row 2 are
// kept. A row is one output channel of a linear layer, or one (output channel, tap) of an OHWI convolution.
//
//   groups = ceil(columns / 4)
//   values   int8  [rows, 2 * groups]             the kept values, ascending column order
//   indices  uint8 [rows, ceil(groups / 2)]       4 bits a group, low nibble first: first kept position
//                                                 (0..2) in bits 0-1, second (1..3) in bits 2-3
//
// first < second always. Columns past the end (columns % 4 != 0) may be named only with value 0. The unused
// high nibble after an odd number of groups is 0.
#pragma once
#include <cstdint>

namespace sparseq {

enum class Format24 : int32_t { ok = 0, not_2_4, bad_index, bad_padding, bad_size };

constexpr int64_t groups_24(int64_t columns) { return (columns + 3) / 4; }
constexpr int64_t values_24(int64_t columns) { return 2 * groups_24(columns); }
constexpr int64_t index_bytes_24(int64_t columns) { return (groups_24(columns) + 1) / 2; }

// mask[r, c] = 1 for the 2 largest |weight| of each group of 4, earlier columns first among equals; NaN
// counts as the smallest. A tail shorter than 4 keeps at most 2.
void mask_24(const float* weight, uint8_t* mask, int64_t rows, int64_t columns);

// not_2_4 if some group of 4 has more than 2 non-zeros. Groups with fewer are filled up with zeros.
Format24 pack_24(const int8_t* weight, int64_t rows, int64_t columns, int8_t* values, uint8_t* indices);

// Checks the buffers before anything is read through an index. The sizes are those of the buffers at hand.
Format24 validate_24(const int8_t* values, int64_t value_count, const uint8_t* indices, int64_t index_count,
                     int64_t rows, int64_t columns);

// Validates, then writes the dense [rows, columns]; the output is untouched on error.
Format24 unpack_24(const int8_t* values, int64_t value_count, const uint8_t* indices, int64_t index_count, int64_t rows,
                   int64_t columns, int8_t* weight);

const char* describe(Format24 error);

}  // namespace sparseq
