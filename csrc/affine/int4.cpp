// INT4 packed two to a byte along the last dimension, first value in the low bits (as ONNX INT4): CPU.
#include "../core/tensors.h"

namespace sparseq::affine {
namespace {

Tensor pack_int4_cpu(const Tensor& q) {
  const ScalarType type = q.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Char || type == ScalarType::Byte, "pack_int4: q must be int8 or uint8, got ",
                  dtype_name(type));
  STD_TORCH_CHECK(q.dim() >= 1, "pack_int4: q must have at least one dimension");
  const Tensor dense = torch::stable::contiguous(q);
  std::vector<int64_t> shape(q.sizes().begin(), q.sizes().end());
  const int64_t columns = shape.back(), bytes = (columns + 1) / 2;
  shape.back() = bytes;
  const int64_t rows = columns ? q.numel() / columns : 0;
  Tensor packed = torch::stable::empty(shape, ScalarType::Byte);
  const auto* from = static_cast<const uint8_t*>(dense.const_data_ptr());
  auto* to = static_cast<uint8_t*>(packed.mutable_data_ptr());
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, 65536 / std::max<int64_t>(columns, 1)), [&](int64_t b, int64_t e) {
    for (int64_t r = b; r < e; ++r) {
      const uint8_t* row = from + r * columns;
      uint8_t* out = to + r * bytes;
      for (int64_t i = 0; i < columns / 2; ++i) out[i] = uint8_t((row[2 * i] & 15) | (row[2 * i + 1] << 4));
      if (columns % 2) out[bytes - 1] = row[columns - 1] & 15;
    }
  });
  return packed;
}

Tensor unpack_int4_cpu(const Tensor& packed, int64_t columns, bool is_signed) {
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::Byte, "unpack_int4: packed must be uint8, got ",
                  dtype_name(packed.scalar_type()));
  STD_TORCH_CHECK(packed.dim() >= 1 && columns >= 0 && packed.size(packed.dim() - 1) == (columns + 1) / 2,
                  "unpack_int4: packed must have ", (columns + 1) / 2, " bytes a row for ", columns,
                  " columns, got shape ", shape_of(packed));
  const Tensor dense = torch::stable::contiguous(packed);
  std::vector<int64_t> shape(packed.sizes().begin(), packed.sizes().end());
  const int64_t bytes = shape.back(), rows = bytes ? packed.numel() / bytes : 0;
  shape.back() = columns;
  Tensor q = torch::stable::empty(shape, is_signed ? ScalarType::Char : ScalarType::Byte);
  const auto* from = static_cast<const uint8_t*>(dense.const_data_ptr());
  auto* to = static_cast<uint8_t*>(q.mutable_data_ptr());
  const uint8_t flip = is_signed ? 8 : 0;  // (v ^ 8) - 8 extends a 4-bit sign
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, 65536 / std::max<int64_t>(columns, 1)), [&](int64_t b, int64_t e) {
    for (int64_t r = b; r < e; ++r)
      for (int64_t i = 0; i < columns; ++i) {
        const uint8_t nibble = (from[r * bytes + i / 2] >> (i % 2 * 4)) & 15;
        to[r * columns + i] = uint8_t((nibble ^ flip) - flip);
      }
  });
  return q;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseq, CPU, m) {
  m.impl("pack_int4", TORCH_BOX(&pack_int4_cpu));
  m.impl("unpack_int4", TORCH_BOX(&unpack_int4_cpu));
}

}  // namespace sparseq::affine
