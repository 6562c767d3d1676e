// A table of 256 bytes as shuffles of sixteen bytes look it up.
//
// A shuffle takes the low half of an index, and gives 0 where its top bit is set. An index below 128 that goes down by
// 16, saturating, meets part after part until it is negative; each part is stored as its difference (by xor) from the
// one before, so that the xor of all that were met is the entry. The upper 128 likewise, of the index with its top bit
// flipped.
#pragma once
#include <cstdint>

namespace {

struct ByteTable {
  alignas(16) uint8_t part[2][8][16];
  const uint8_t* bytes;
  explicit ByteTable(const uint8_t* bytes_) : bytes(bytes_) {
    for (int i = 0; i < 256; ++i)
      part[i / 128][i / 16 % 8][i % 16] = static_cast<uint8_t>(bytes[i] ^ (i / 16 % 8 ? bytes[i - 16] : 0));
  }
};

}  // namespace
