// The arguments of the 2:4 ops, checked, and their results, on any device.
#pragma once

#include <stdexcept>

#include "../core/tensors.h"
#include "format.h"

namespace sparseq {

// f(bits of +inf) with the element type as an unsigned integer.
template <class F>
void with_float_bits(const char* op, const Tensor& weight, F f) {
  switch (weight.scalar_type()) {
    case ScalarType::Float: return f(uint32_t{0x7f800000});
    case ScalarType::Half: return f(uint16_t{0x7c00});
    case ScalarType::BFloat16: return f(uint16_t{0x7f80});
    default:
      STD_TORCH_CHECK(false, op, ": weight must be float32, float16 or bfloat16, got ",
                      dtype_name(weight.scalar_type()));
  }
}

// f(an element of the type to copy).
template <class F>
void with_elements(const char* op, const char* argument, const Tensor& t, F f) {
  switch (t.scalar_type()) {
    case ScalarType::Char: return f(int8_t{});
    case ScalarType::Half:
    case ScalarType::BFloat16: return f(uint16_t{});
    case ScalarType::Float: return f(uint32_t{});
    default:
      STD_TORCH_CHECK(false, op, ": ", argument, " must be int8, float32, float16 or bfloat16, got ",
                      dtype_name(t.scalar_type()));
  }
}

// What is wrong, if anything, becomes a ValueError in Python.
inline void refuse(const char* op, const char* argument, const Shape24& shape, const Fault24& fault) {
  if (fault.ok()) return;
  const std::string tap = shape.taps > 1 ? " of tap " + std::to_string(fault.row % shape.taps) : "";
  throw std::invalid_argument(std::string(op) + ": " + argument + " must be 2:4, got group " +
                              std::to_string(fault.group) + " of row " + std::to_string(fault.row / shape.taps) + tap +
                              ", which " + describe(fault.error));
}

inline Tensor empty_beside(const Tensor& x, const std::vector<int64_t>& sizes, ScalarType dtype) {
  return torch::stable::empty(sizes, dtype, std::nullopt, x.device());
}

struct ToMask24 {
  Tensor dense, mask;
  Shape24 shape;

  explicit ToMask24(const Tensor& weight) : dense(weight), mask(weight) {
    STD_TORCH_CHECK(weight.dim() >= 2, "mask_24: weight must have at least two dimensions, got shape ",
                    shape_of(weight));
    dense = torch::stable::contiguous(weight);
    mask = empty_beside(weight, {weight.sizes().begin(), weight.sizes().end()}, ScalarType::Bool);
    shape = {weight.size(0), weight.size(1), 1};
    for (int64_t d = 2; d < weight.dim(); ++d) shape.taps *= weight.size(d);
  }
};

struct ToPack24 {
  Tensor dense, values, indices;
  Shape24 shape;

  explicit ToPack24(const Tensor& weight) : dense(weight), values(weight), indices(weight) {
    STD_TORCH_CHECK(weight.dim() == 2 || weight.dim() == 4,
                    "pack_24: weight must be [N, K] or [O, I, kH, kW], got shape ", shape_of(weight));
    dense = torch::stable::contiguous(weight);
    const bool taps = weight.dim() == 4;
    shape = {weight.size(0), weight.size(1), taps ? weight.size(2) * weight.size(3) : 1};
    std::vector<int64_t> sizes{shape.outputs};
    if (taps) sizes.insert(sizes.end(), {weight.size(2), weight.size(3)});
    sizes.push_back(values_24(shape.columns));
    values = empty_beside(weight, sizes, weight.scalar_type());
    sizes.back() = index_bytes_24(shape.columns);
    indices = empty_beside(weight, sizes, ScalarType::Byte);
  }
};

struct ToUnpack24 {
  Tensor values, indices, weight;
  Shape24 shape;

  ToUnpack24(const Tensor& v, const Tensor& i, int64_t columns) : values(v), indices(i), weight(v) {
    const char* op = "unpack_24";
    const int64_t dim = v.dim();
    STD_TORCH_CHECK(i.scalar_type() == ScalarType::Byte, op, ": indices must be uint8, got ",
                    dtype_name(i.scalar_type()));
    bool fits = (dim == 2 || dim == 4) && i.dim() == dim && columns >= 0 && v.size(dim - 1) == values_24(columns) &&
                i.size(dim - 1) == index_bytes_24(columns);
    for (int64_t d = 0; fits && d + 1 < dim; ++d) fits = v.size(d) == i.size(d);
    STD_TORCH_CHECK(fits, op, ": values and indices must be [N, ", values_24(columns), "] and [N, ",
                    index_bytes_24(columns), "], or [O, kH, kW, ...] alike, for ", columns, " columns, got shapes ",
                    shape_of(v), " and ", shape_of(i));
    values = torch::stable::contiguous(v), indices = torch::stable::contiguous(i);
    const bool taps = dim == 4;
    shape = {v.size(0), columns, taps ? v.size(1) * v.size(2) : 1};
    std::vector<int64_t> sizes{shape.outputs, columns};
    if (taps) sizes.insert(sizes.end(), {v.size(1), v.size(2)});
    weight = empty_beside(v, sizes, v.scalar_type());
  }
};

}  // namespace sparseq
