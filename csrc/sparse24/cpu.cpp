// The 2:4 ops on the CPU: mask, and the canonical form to and from dense weights.
#include <mutex>
#include <stdexcept>

#include "../core/tensors.h"
#include "format.h"

namespace sparseq {
namespace {

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

// Threads take `count` lines of `each` elements.
template <class F>
void over_lines(int64_t count, int64_t each, F f) {
  torch::stable::parallel_for(0, count, std::max<int64_t>(1, 32768 / std::max<int64_t>(1, each)), f);
}

// Runs f over rows; what it finds first, in the order of rows, becomes a ValueError in Python.
template <class F>
void over_rows(const char* op, const char* argument, const Shape24& shape, F f) {
  std::mutex mutex;
  Fault24 worst;
  over_lines(shape.rows(), shape.columns, [&](int64_t begin, int64_t end) {
    const Fault24 fault = f(begin, end);
    const std::lock_guard lock(mutex);
    if (!fault.ok() && (worst.ok() || fault.row < worst.row)) worst = fault;
  });
  if (worst.ok()) return;
  const std::string tap = shape.taps > 1 ? " of tap " + std::to_string(worst.row % shape.taps) : "";
  throw std::invalid_argument(std::string(op) + ": " + argument + " must be 2:4, got group " +
                              std::to_string(worst.group) + " of row " + std::to_string(worst.row / shape.taps) + tap +
                              ", which " + describe(worst.error));
}

Tensor mask_24_cpu(const Tensor& weight) {
  STD_TORCH_CHECK(weight.dim() >= 2, "mask_24: weight must have at least two dimensions, got shape ", shape_of(weight));
  const Tensor dense = torch::stable::contiguous(weight);
  Tensor mask = torch::stable::empty(weight.sizes(), ScalarType::Bool);
  Shape24 shape{weight.size(0), weight.size(1), 1};
  for (int64_t d = 2; d < weight.dim(); ++d) shape.taps *= weight.size(d);
  with_float_bits("mask_24", weight, [&](auto infinity) {
    const auto* from = static_cast<const decltype(infinity)*>(dense.const_data_ptr());
    auto* to = static_cast<uint8_t*>(mask.mutable_data_ptr());
    over_lines(shape.outputs, shape.columns * shape.taps,
               [&](int64_t begin, int64_t end) { mask_24(from, infinity, to, shape, begin, end); });
  });
  return mask;
}

std::tuple<Tensor, Tensor> pack_24_cpu(const Tensor& weight) {
  const char* op = "pack_24";
  STD_TORCH_CHECK(weight.dim() == 2 || weight.dim() == 4, op, ": weight must be [N, K] or [O, I, kH, kW], got shape ",
                  shape_of(weight));
  const Tensor dense = torch::stable::contiguous(weight);
  const bool taps = weight.dim() == 4;
  const Shape24 shape{weight.size(0), weight.size(1), taps ? weight.size(2) * weight.size(3) : 1};
  std::vector<int64_t> sizes{shape.outputs};
  if (taps) sizes.insert(sizes.end(), {weight.size(2), weight.size(3)});
  sizes.push_back(values_24(shape.columns));
  Tensor values = torch::stable::empty(sizes, weight.scalar_type());
  sizes.back() = index_bytes_24(shape.columns);
  Tensor indices = torch::stable::empty(sizes, ScalarType::Byte);
  with_elements(op, "weight", weight, [&](auto element) {
    using T = decltype(element);
    const auto* from = static_cast<const T*>(dense.const_data_ptr());
    auto* v = static_cast<T*>(values.mutable_data_ptr());
    auto* i = static_cast<uint8_t*>(indices.mutable_data_ptr());
    over_rows(op, "weight", shape, [&](int64_t begin, int64_t end) { return pack_24(from, shape, v, i, begin, end); });
  });
  return {values, indices};
}

Tensor unpack_24_cpu(const Tensor& values, const Tensor& indices, int64_t columns) {
  const char* op = "unpack_24";
  const int64_t dim = values.dim();
  STD_TORCH_CHECK(indices.scalar_type() == ScalarType::Byte, op, ": indices must be uint8, got ",
                  dtype_name(indices.scalar_type()));
  bool fits = (dim == 2 || dim == 4) && indices.dim() == dim && columns >= 0 &&
              values.size(dim - 1) == values_24(columns) && indices.size(dim - 1) == index_bytes_24(columns);
  for (int64_t d = 0; fits && d + 1 < dim; ++d) fits = values.size(d) == indices.size(d);
  STD_TORCH_CHECK(fits, op, ": values and indices must be [N, ", values_24(columns), "] and [N, ",
                  index_bytes_24(columns), "], or [O, kH, kW, ...] alike, for ", columns, " columns, got shapes ",
                  shape_of(values), " and ", shape_of(indices));
  const Tensor v = torch::stable::contiguous(values), i = torch::stable::contiguous(indices);
  const bool taps = dim == 4;
  const Shape24 shape{values.size(0), columns, taps ? values.size(1) * values.size(2) : 1};
  std::vector<int64_t> sizes{shape.outputs, columns};
  if (taps) sizes.insert(sizes.end(), {values.size(1), values.size(2)});
  Tensor weight = torch::stable::empty(sizes, values.scalar_type());
  with_elements(op, "values", values, [&](auto element) {
    using T = decltype(element);
    const auto* from = static_cast<const T*>(v.const_data_ptr());
    const auto* index = static_cast<const uint8_t*>(i.const_data_ptr());
    auto* to = static_cast<T*>(weight.mutable_data_ptr());
    over_rows(op, "values and indices", shape,
              [&](int64_t begin, int64_t end) { return unpack_24(from, index, shape, to, begin, end); });
  });
  return weight;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseq, CPU, m) {
  m.impl("mask_24", TORCH_BOX(&mask_24_cpu));
  m.impl("pack_24", TORCH_BOX(&pack_24_cpu));
  m.impl("unpack_24", TORCH_BOX(&unpack_24_cpu));
}

}  // namespace sparseq
