#include "format.h"

#include <algorithm>
#include <array>
#include <type_traits>

namespace sparseq {
namespace {

// The bits of a float but its sign: they order as its magnitude does.
template <class T>
constexpr T magnitude(T bits) {
  return bits & T(T(~T(0)) >> 1);
}

constexpr bool is_zero(int8_t value) { return value == 0; }
template <class T>
constexpr bool is_zero(T bits) {
  return magnitude(bits) == 0;
}

// The index nibble by which of 4 are non-zero (bit i: position i); 0, which is no valid one, for three or four.
constexpr std::array<uint8_t, 16> kNibbles = [] {
  std::array<uint8_t, 16> table{};
  for (int set = 0; set < 16; ++set) {
    int first = 0, last = 3, count = 0;
    for (int i = 0; i < 4; ++i) count += set >> i & 1;
    if (count > 2) continue;
    while (first < 2 && !(set >> first & 1)) ++first;
    while (last > first && !(set >> last & 1)) --last;
    const int second = last > first ? last : first < 2 ? 2 : 3;
    table[size_t(set)] = uint8_t(first | second << 2);
  }
  return table;
}();

struct Kept {
  int first, second;
};

Kept kept(const uint8_t* indices, int64_t group) {
  const int nibble = indices[group / 2] >> (4 * (group % 2)) & 15;
  return {nibble & 3, nibble >> 2};
}

// Row r of a dense weight: element c is at data[c * step].
template <class T>
struct Line {
  T* data;
  int64_t step;
  Line(T* weight, const Shape24& shape, int64_t row)
      : data(weight + row / shape.taps * shape.columns * shape.taps + row % shape.taps), step(shape.taps) {}
  T& operator[](int64_t column) const { return data[column * step]; }
};

constexpr int64_t kLanes = 64;  // groups that are ranked side by side, for the compiler to vectorise

// Groups i of `lanes`, whose member j of `members` (up to 4) is at i * kLaneStep + j * member_step.
template <int64_t kLaneStep, class T>
void keep_two(const T* weight, T infinity, uint8_t* mask, int64_t member_step, int64_t lanes, int64_t members) {
  using Key = std::make_signed_t<T>;
  Key key[4][kLanes];
  uint8_t keep[4][kLanes];
  for (int64_t j = 0; j < 4; ++j) {
    if (j >= members) {
      std::fill(key[j], key[j] + kLanes, Key(-2));  // below NaN
      continue;
    }
    for (int64_t i = 0; i < lanes; ++i) {
      const T size = magnitude(weight[i * kLaneStep + j * member_step]);
      key[j][i] = size > infinity ? Key(-1) : Key(size);
    }
  }
  // The two greatest are those that win two of their three comparisons; the earlier wins among equals.
  for (int64_t i = 0; i < lanes; ++i) {
    const Key a = key[0][i], b = key[1][i], c = key[2][i], d = key[3][i];
    const int ab = a >= b, ac = a >= c, ad = a >= d, bc = b >= c, bd = b >= d, cd = c >= d;
    keep[0][i] = ab + ac + ad >= 2;
    keep[1][i] = bc + bd >= 1 + ab;
    keep[2][i] = cd >= ac + bc;
    keep[3][i] = ad + bd + cd <= 1;
  }
  for (int64_t j = 0; j < members; ++j)
    for (int64_t i = 0; i < lanes; ++i) mask[i * kLaneStep + j * member_step] = keep[j][i];
}

}  // namespace

template <class T>
void mask_24(const T* weight, T infinity, uint8_t* mask, const Shape24& shape, int64_t begin, int64_t end) {
  const int64_t columns = shape.columns, taps = shape.taps, whole = columns / 4;
  for (int64_t o = begin; o < end; ++o) {
    const T* from = weight + o * columns * taps;
    uint8_t* to = mask + o * columns * taps;
    if (taps == 1) {
      for (int64_t g = 0; g < whole; g += kLanes)
        keep_two<4>(from + 4 * g, infinity, to + 4 * g, 1, std::min(kLanes, whole - g), 4);
      if (columns % 4) keep_two<4>(from + 4 * whole, infinity, to + 4 * whole, 1, 1, columns % 4);
      continue;
    }
    for (int64_t c = 0; c < columns; c += 4)
      for (int64_t t = 0; t < taps; t += kLanes)
        keep_two<1>(from + c * taps + t, infinity, to + c * taps + t, taps, std::min(kLanes, taps - t),
                    std::min<int64_t>(4, columns - c));
  }
}

template <class T>
Fault24 pack_24(const T* weight, const Shape24& shape, T* values, uint8_t* indices, int64_t begin, int64_t end) {
  const int64_t columns = shape.columns, groups = groups_24(columns), bytes = index_bytes_24(columns);
  for (int64_t r = begin; r < end; ++r) {
    const Line<const T> line(weight, shape, r);
    std::fill_n(indices + r * bytes, bytes, uint8_t(0));
    for (int64_t g = 0; g < groups; ++g) {
      T w[4] = {0, 0, 0, 0};
      unsigned set = 0;
      for (int64_t i = 0; i < std::min<int64_t>(4, columns - 4 * g); ++i) {
        w[i] = line[4 * g + i];
        set |= unsigned(!is_zero(w[i])) << i;
      }
      const uint8_t nibble = kNibbles[set];
      if (nibble == 0) return {Format24::not_2_4, r, g};
      const int first = nibble & 3, second = nibble >> 2;
      T* v = values + (r * groups + g) * 2;
      v[0] = set >> first & 1 ? w[first] : T(0);
      v[1] = set >> second & 1 ? w[second] : T(0);
      indices[r * bytes + g / 2] |= uint8_t(nibble << (4 * (g % 2)));
    }
  }
  return {};
}

template <class T>
Fault24 unpack_24(const T* values, const uint8_t* indices, const Shape24& shape, T* weight, int64_t begin,
                  int64_t end) {
  const int64_t columns = shape.columns, groups = groups_24(columns), bytes = index_bytes_24(columns);
  for (int64_t r = begin; r < end; ++r) {
    const uint8_t* index = indices + r * bytes;
    for (int64_t g = 0; g < groups; ++g) {
      const Kept k = kept(index, g);
      const T* v = values + (r * groups + g) * 2;
      if (k.first >= k.second) return {Format24::bad_index, r, g};
      if ((4 * g + k.first >= columns && !is_zero(v[0])) || (4 * g + k.second >= columns && !is_zero(v[1])))
        return {Format24::bad_padding, r, g};
    }
    if (groups % 2 == 1 && index[bytes - 1] >> 4 != 0) return {Format24::bad_padding, r, groups};
  }
  for (int64_t r = begin; r < end; ++r) {
    const Line<T> line(weight, shape, r);
    for (int64_t c = 0; c < columns; ++c) line[c] = 0;
    for (int64_t g = 0; g < groups; ++g) {
      const Kept k = kept(indices + r * bytes, g);
      const T* v = values + (r * groups + g) * 2;
      if (4 * g + k.first < columns) line[4 * g + k.first] = v[0];
      if (4 * g + k.second < columns) line[4 * g + k.second] = v[1];
    }
  }
  return {};
}

const char* describe(Format24 error) {
  switch (error) {
    case Format24::ok: return "is sound";
    case Format24::not_2_4: return "has more than 2 non-zeros";
    case Format24::bad_index: return "has an index pair that does not ascend";
    case Format24::bad_padding: return "has a value or an index past the last column";
  }
  return "is of an unknown state";
}

template void mask_24(const uint16_t*, uint16_t, uint8_t*, const Shape24&, int64_t, int64_t);
template void mask_24(const uint32_t*, uint32_t, uint8_t*, const Shape24&, int64_t, int64_t);
template Fault24 pack_24(const int8_t*, const Shape24&, int8_t*, uint8_t*, int64_t, int64_t);
template Fault24 pack_24(const uint16_t*, const Shape24&, uint16_t*, uint8_t*, int64_t, int64_t);
template Fault24 pack_24(const uint32_t*, const Shape24&, uint32_t*, uint8_t*, int64_t, int64_t);
template Fault24 unpack_24(const int8_t*, const uint8_t*, const Shape24&, int8_t*, int64_t, int64_t);
template Fault24 unpack_24(const uint16_t*, const uint8_t*, const Shape24&, uint16_t*, int64_t, int64_t);
template Fault24 unpack_24(const uint32_t*, const uint8_t*, const Shape24&, uint32_t*, int64_t, int64_t);

}  // namespace sparseq
