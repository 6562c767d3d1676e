#include "format.h"

#include <cmath>
#include <cstring>

namespace sparseq {
namespace {

struct Kept {
  int first, second;
};

Kept kept(const uint8_t* indices, int64_t group) {
  const int nibble = (indices[group / 2] >> (4 * (group % 2))) & 15;
  return {nibble & 3, nibble >> 2};
}

}  // namespace

void mask_24(const float* weight, uint8_t* mask, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; c += 4) {
      const float* w = weight + r * columns + c;
      uint8_t* m = mask + r * columns + c;
      const int count = static_cast<int>(columns - c < 4 ? columns - c : 4);
      float size[4];
      for (int i = 0; i < count; ++i) size[i] = w[i] == w[i] ? std::fabs(w[i]) : -1.0f;
      for (int i = 0; i < count; ++i) {
        int larger = 0;
        for (int j = 0; j < count; ++j) larger += size[j] > size[i] || (size[j] == size[i] && j < i);
        m[i] = larger < 2;
      }
    }
  }
}

Format24 pack_24(const int8_t* weight, int64_t rows, int64_t columns, int8_t* values, uint8_t* indices) {
  const int64_t groups = groups_24(columns);
  if (rows * groups > 0) std::memset(indices, 0, static_cast<std::size_t>(rows * index_bytes_24(columns)));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t g = 0; g < groups; ++g) {
      int8_t w[4] = {0, 0, 0, 0};
      for (int64_t i = 0; i < 4 && 4 * g + i < columns; ++i) w[i] = weight[r * columns + 4 * g + i];
      int position[4], count = 0;
      for (int i = 0; i < 4; ++i)
        if (w[i] != 0) position[count++] = i;
      if (count > 2) return Format24::not_2_4;
      if (count == 0) position[0] = 0, position[1] = 1;
      if (count == 1) {  // a zero goes along: behind the value if there is room, else before it
        if (position[0] < 3)
          position[1] = 3;
        else
          position[1] = 3, position[0] = 2;
      }
      int8_t* v = values + (r * groups + g) * 2;
      v[0] = w[position[0]];
      v[1] = w[position[1]];
      const int nibble = position[0] | position[1] << 2;
      uint8_t& byte = indices[r * index_bytes_24(columns) + g / 2];
      byte = static_cast<uint8_t>(byte | nibble << (4 * (g % 2)));
    }
  }
  return Format24::ok;
}

Format24 validate_24(const int8_t* values, int64_t value_count, const uint8_t* indices, int64_t index_count,
                     int64_t rows, int64_t columns) {
  if (rows < 0 || columns < 0) return Format24::bad_size;
  const int64_t groups = groups_24(columns), bytes = index_bytes_24(columns);
  // Divide instead of multiplying: a corrupt header must not overflow the comparison.
  const auto matches = [rows](int64_t count, int64_t per_row) {
    if (rows == 0 || per_row == 0) return count == 0;
    return count % per_row == 0 && count / per_row == rows;
  };
  if (!matches(value_count, 2 * groups) || !matches(index_count, bytes)) return Format24::bad_size;
  for (int64_t r = 0; r < rows; ++r) {
    const uint8_t* index = indices + r * bytes;
    for (int64_t g = 0; g < groups; ++g) {
      const Kept k = kept(index, g);
      if (k.first >= k.second) return Format24::bad_index;
      const int8_t* v = values + (r * groups + g) * 2;
      if ((4 * g + k.first >= columns && v[0] != 0) || (4 * g + k.second >= columns && v[1] != 0))
        return Format24::bad_padding;
    }
    if (groups % 2 == 1 && index[bytes - 1] >> 4 != 0) return Format24::bad_padding;
  }
  return Format24::ok;
}

Format24 unpack_24(const int8_t* values, int64_t value_count, const uint8_t* indices, int64_t index_count, int64_t rows,
                   int64_t columns, int8_t* weight) {
  const Format24 error = validate_24(values, value_count, indices, index_count, rows, columns);
  if (error != Format24::ok) return error;
  const int64_t groups = groups_24(columns);
  if (rows * columns > 0) std::memset(weight, 0, static_cast<std::size_t>(rows * columns));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t g = 0; g < groups; ++g) {
      const Kept k = kept(indices + r * index_bytes_24(columns), g);
      const int8_t* v = values + (r * groups + g) * 2;
      if (4 * g + k.first < columns) weight[r * columns + 4 * g + k.first] = v[0];
      if (4 * g + k.second < columns) weight[r * columns + 4 * g + k.second] = v[1];
    }
  }
  return Format24::ok;
}

const char* describe(Format24 error) {
  switch (error) {
    case Format24::ok: return "ok";
    case Format24::not_2_4: return "a group of 4 has more than 2 non-zeros";
    case Format24::bad_index: return "an index pair is not ascending";
    case Format24::bad_padding: return "a value or index lies past the last column";
    case Format24::bad_size: return "a buffer has the wrong size";
  }
  return "unknown";
}

}  // namespace sparseq
