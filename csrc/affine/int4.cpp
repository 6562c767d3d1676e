// INT4 packed two to a byte along the last dimension, first value in the low bits (as ONNX INT4): CPU.
#include "int4.h"

namespace sparseq::affine {
namespace {

template <class F>
void over_rows(const Int4& problem, F f) {
  const int64_t grain = std::max<int64_t>(1, 65536 / std::max<int64_t>(problem.columns, 1));
  torch::stable::parallel_for(0, problem.rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) f(row);
  });
}

// Plain loops over pairs with restricted pointers: the compiler vectorises them.
void pack_row(const uint8_t* __restrict q, uint8_t* __restrict packed, int64_t columns) {
  for (int64_t i = 0; i < columns / 2; ++i) packed[i] = uint8_t((q[2 * i] & 15) | (q[2 * i + 1] << 4));
  if (columns % 2) packed[columns / 2] = q[columns - 1] & 15;
}

// (v ^ 8) - 8 extends a 4-bit sign; with flip = 0 nothing happens
void unpack_row(const uint8_t* __restrict packed, uint8_t* __restrict q, int64_t columns, uint8_t flip) {
  for (int64_t i = 0; i < columns / 2; ++i) {
    q[2 * i] = uint8_t(((packed[i] & 15) ^ flip) - flip);
    q[2 * i + 1] = uint8_t(((packed[i] >> 4) ^ flip) - flip);
  }
  if (columns % 2) q[columns - 1] = uint8_t(((packed[columns / 2] & 15) ^ flip) - flip);
}

Tensor pack_int4_cpu(const Tensor& q) {
  const Int4 problem = int4_to_pack(q);
  Tensor packed = torch::stable::empty(problem.shape, ScalarType::Byte);
  const auto* from = static_cast<const uint8_t*>(problem.dense.const_data_ptr());
  auto* to = static_cast<uint8_t*>(packed.mutable_data_ptr());
  const int64_t columns = problem.columns, bytes = (columns + 1) / 2;
  over_rows(problem, [&](int64_t row) { pack_row(from + row * columns, to + row * bytes, columns); });
  return packed;
}

Tensor unpack_int4_cpu(const Tensor& packed, int64_t columns, bool is_signed) {
  const Int4 problem = int4_to_unpack(packed, columns);
  Tensor q = torch::stable::empty(problem.shape, is_signed ? ScalarType::Char : ScalarType::Byte);
  const auto* from = static_cast<const uint8_t*>(problem.dense.const_data_ptr());
  auto* to = static_cast<uint8_t*>(q.mutable_data_ptr());
  const int64_t bytes = (columns + 1) / 2;
  const uint8_t flip = is_signed ? 8 : 0;
  over_rows(problem, [&](int64_t row) { unpack_row(from + row * bytes, to + row * columns, columns, flip); });
  return q;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseq, CPU, m) {
  m.impl("pack_int4", TORCH_BOX(&pack_int4_cpu));
  m.impl("unpack_int4", TORCH_BOX(&unpack_int4_cpu));
}

}  // namespace sparseq::affine
