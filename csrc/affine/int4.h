// Checks and shapes of the INT4 ops, shared by CPU and CUDA.
#pragma once

#include "../core/tensors.h"

namespace sparseq::affine {

constexpr int64_t int4_bytes(int64_t columns) { return columns / 2 + columns % 2; }

struct Int4 {
  Tensor dense;                // the input, contiguous
  std::vector<int64_t> shape;  // of the output
  int64_t rows, columns;       // columns: values of a row, unpacked
};

inline Int4 int4_to_pack(const Tensor& q) {
  const ScalarType type = q.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Char || type == ScalarType::Byte, "pack_int4: q must be int8 or uint8, got ",
                  dtype_name(type));
  STD_TORCH_CHECK(q.dim() >= 1, "pack_int4: q must have at least one dimension");
  std::vector<int64_t> shape(q.sizes().begin(), q.sizes().end());
  const int64_t columns = shape.back();
  shape.back() = int4_bytes(columns);
  return {torch::stable::contiguous(q), shape, columns ? q.numel() / columns : 0, columns};
}

inline Int4 int4_to_unpack(const Tensor& packed, int64_t columns) {
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::Byte, "unpack_int4: packed must be uint8, got ",
                  dtype_name(packed.scalar_type()));
  STD_TORCH_CHECK(packed.dim() >= 1 && columns >= 0 && packed.size(packed.dim() - 1) == int4_bytes(columns),
                  "unpack_int4: packed must have ", int4_bytes(columns), " bytes a row for ", columns,
                  " columns, got shape ", shape_of(packed));
  std::vector<int64_t> shape(packed.sizes().begin(), packed.sizes().end());
  const int64_t bytes = shape.back();
  shape.back() = columns;
  return {torch::stable::contiguous(packed), shape, bytes ? packed.numel() / bytes : 0, columns};
}

}  // namespace sparseq::affine
