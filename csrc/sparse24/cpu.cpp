// The 2:4 ops on the CPU: mask, and the canonical form to and from dense weights.
#include <mutex>

#include "arguments.h"

namespace sparseq {
namespace {

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
  refuse(op, argument, shape, worst);
}

Tensor mask_24_cpu(const Tensor& weight) {
  const ToMask24 o(weight);
  with_float_bits("mask_24", weight, [&](auto infinity) {
    const auto* from = static_cast<const decltype(infinity)*>(o.dense.const_data_ptr());
    auto* to = static_cast<uint8_t*>(o.mask.mutable_data_ptr());
    over_lines(o.shape.outputs, o.shape.columns * o.shape.taps,
               [&](int64_t begin, int64_t end) { mask_24(from, infinity, to, o.shape, begin, end); });
  });
  return o.mask;
}

std::tuple<Tensor, Tensor> pack_24_cpu(const Tensor& weight) {
  const ToPack24 o(weight);
  with_elements("pack_24", "weight", weight, [&](auto element) {
    using T = decltype(element);
    const auto* from = static_cast<const T*>(o.dense.const_data_ptr());
    auto* v = static_cast<T*>(o.values.mutable_data_ptr());
    auto* i = static_cast<uint8_t*>(o.indices.mutable_data_ptr());
    over_rows("pack_24", "weight", o.shape,
              [&](int64_t begin, int64_t end) { return pack_24(from, o.shape, v, i, begin, end); });
  });
  return {o.values, o.indices};
}

Tensor unpack_24_cpu(const Tensor& values, const Tensor& indices, int64_t columns) {
  const ToUnpack24 o(values, indices, columns);
  with_elements("unpack_24", "values", values, [&](auto element) {
    using T = decltype(element);
    const auto* from = static_cast<const T*>(o.values.const_data_ptr());
    const auto* index = static_cast<const uint8_t*>(o.indices.const_data_ptr());
    auto* to = static_cast<T*>(o.weight.mutable_data_ptr());
    over_rows("unpack_24", "values and indices", o.shape,
              [&](int64_t begin, int64_t end) { return unpack_24(from, index, o.shape, to, begin, end); });
  });
  return o.weight;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseq, CPU, m) {
  m.impl("mask_24", TORCH_BOX(&mask_24_cpu));
  m.impl("pack_24", TORCH_BOX(&pack_24_cpu));
  m.impl("unpack_24", TORCH_BOX(&unpack_24_cpu));
}

}  // namespace sparseq
