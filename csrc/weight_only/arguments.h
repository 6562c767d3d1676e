// The arguments of the weight-only products, checked, and their result, on any device.
#pragma once

#include "../core/epilogue.h"
#include "../core/tensors.h"

namespace sparseq::weight_only {

// The element type of a float tensor.
inline Element float_element(const char* op, const char* argument, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return Element::f32;
    case ScalarType::Half: return Element::f16;
    case ScalarType::BFloat16: return Element::bf16;
    default:
      STD_TORCH_CHECK(false, op, ": ", argument, " must be float32, float16 or bfloat16, got ",
                      dtype_name(t.scalar_type()));
  }
}

// An optional tensor of a dtype and shape, contiguous, with its pointer.
struct Array {
  std::optional<Tensor> held;

  Array(const char* op, const char* argument, const Tensor& x, const std::optional<Tensor>& t, ScalarType type,
        int64_t rows, int64_t columns = -1) {
    if (!t) return;
    const bool fits = columns >= 0 ? t->dim() == 2 && t->size(0) == rows && t->size(1) == columns
                                   : t->dim() == 1 && t->size(0) == rows;
    STD_TORCH_CHECK(fits && t->scalar_type() == type, op, ": ", argument, " must be ", dtype_name(type), " of shape [",
                    rows, columns >= 0 ? ", " + std::to_string(columns) : "", "], got ", dtype_name(t->scalar_type()),
                    " ", shape_of(*t));
    STD_TORCH_CHECK(t->device() == x.device(), op, ": ", argument, " must be on x's device");
    held = made_contiguous(*t);
  }
  template <class T>
  const T* as() const {
    return held ? static_cast<const T*>(held->const_data_ptr()) : nullptr;
  }
};

// x and y of a linear layer: rows next to each other.
struct Rows {
  Tensor x, y;
  Element type;
  int64_t count = 1, depth, outputs;

  Rows(const char* op, const Tensor& given, int64_t outputs_)
      : x(given), y(given), type(float_element(op, "x", given)), depth(given.size(given.dim() - 1)), outputs(outputs_) {
    std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
    shape.back() = outputs;
    for (size_t d = 0; d + 1 < shape.size(); ++d) count *= shape[d];
    y = torch::stable::empty(shape, x.scalar_type(), std::nullopt, x.device());
    if (!empty()) x = made_contiguous(x);
  }
  bool empty() const { return count == 0 || outputs == 0; }
};

struct Int4Arguments {
  static constexpr const char* op = "int4_linear";
  Rows rows;
  int64_t groups;
  Array packed, scale, zero, bias;

  Int4Arguments(const Tensor& x, const Tensor& packed_, const Tensor& scale_, const std::optional<Tensor>& zero_,
                const std::optional<Tensor>& bias_)
      : rows(op, x, outputs_of(x, packed_, scale_)),
        groups(scale_.size(1)),
        packed(op, "packed", x, packed_, ScalarType::Byte, rows.outputs, packed_.size(1)),
        scale(op, "scale", x, scale_, ScalarType::Float, rows.outputs, groups),
        zero(op, "zero_point", x, zero_, ScalarType::Int, rows.outputs, groups),
        bias(op, "bias", x, bias_, ScalarType::Float, rows.outputs) {}

 private:
  static int64_t outputs_of(const Tensor& x, const Tensor& packed, const Tensor& scale) {
    STD_TORCH_CHECK(x.dim() >= 1 && packed.dim() == 2 && packed.size(1) == (x.size(x.dim() - 1) + 1) / 2, op,
                    ": x must be [..., K] and packed [N, ceil(K / 2)], got ", shape_of(x), " and ", shape_of(packed));
    const int64_t depth = x.size(x.dim() - 1);
    STD_TORCH_CHECK(scale.dim() == 2 && scale.size(1) >= 1 && depth % scale.size(1) == 0, op,
                    ": scale must be [N, G] with G a divisor of K = ", depth, ", got ", shape_of(scale));
    return packed.size(0);
  }
};

struct SparseArguments {
  static constexpr const char* op = "linear_24";
  Rows rows;
  Element type;  // of the values
  Array values, indices, bias;

  SparseArguments(const Tensor& x, const Tensor& values_, const Tensor& indices_, const std::optional<Tensor>& bias_)
      : rows(op, x, outputs_of(x, values_, indices_)),
        type(float_element(op, "values", values_)),
        values(op, "values", x, values_, values_.scalar_type(), rows.outputs, values_.size(1)),
        indices(op, "indices", x, indices_, ScalarType::Byte, rows.outputs, indices_.size(1)),
        bias(op, "bias", x, bias_, ScalarType::Float, rows.outputs) {}

 private:
  static int64_t outputs_of(const Tensor& x, const Tensor& values, const Tensor& indices) {
    STD_TORCH_CHECK(x.dim() >= 1 && values.dim() == 2, op, ": x must be [..., K] and values [N, 2 * ceil(K / 4)], got ",
                    shape_of(x), " and ", shape_of(values));
    const int64_t outputs = values.size(0), groups = (x.size(x.dim() - 1) + 3) / 4;
    const auto matrix = [&](const char* argument, const Tensor& t, int64_t columns) {
      STD_TORCH_CHECK(t.dim() == 2 && t.size(0) == outputs && t.size(1) == columns, op, ": ", argument,
                      " must have shape [", outputs, ", ", columns, "] for x of shape ", shape_of(x), ", got ",
                      shape_of(t));
    };
    matrix("values", values, 2 * groups);
    matrix("indices", indices, (groups + 1) / 2);
    return outputs;
  }
};

// values and indices of `columns` inputs, for tiles_24; both on one device.
struct TilesArguments {
  static constexpr const char* op = "tiles_24";
  Element type;
  int64_t outputs, columns;
  Array values, indices;

  TilesArguments(const Tensor& values_, const Tensor& indices_, int64_t columns_)
      : type(float_element(op, "values", values_)),
        outputs(outputs_of(values_, columns_)),
        columns(columns_),
        values(op, "values", values_, values_, values_.scalar_type(), outputs, 2 * ((columns + 3) / 4)),
        indices(op, "indices", values_, indices_, ScalarType::Byte, outputs, ((columns + 3) / 4 + 1) / 2) {}

 private:
  static int64_t outputs_of(const Tensor& values, int64_t columns) {
    STD_TORCH_CHECK(values.dim() == 2 && columns >= 0, op,
                    ": values must be [N, 2 * ceil(columns / 4)] and columns at least 0, got ", shape_of(values),
                    " and ", columns);
    return values.size(0);
  }
};

}  // namespace sparseq::weight_only
