// Weight-only linear layers on the CPU: x is arranged once, outputs are shared out to torch's threads.
#include "../core/tensors.h"
#include "weight_only.h"

namespace sparseq::weight_only {
namespace {

constexpr int64_t kGrain = 262144;  // products: about 10 us of work, well over a thread's wake-up

// An optional tensor of a dtype and shape, contiguous, with its pointer.
template <class T>
struct Array {
  std::optional<Tensor> held;
  const T* data = nullptr;

  Array(const char* op, const char* argument, const std::optional<Tensor>& t, ScalarType type, int64_t rows,
        int64_t columns = -1) {
    if (!t) return;
    const bool fits = columns >= 0 ? t->dim() == 2 && t->size(0) == rows && t->size(1) == columns
                                   : t->dim() == 1 && t->size(0) == rows;
    STD_TORCH_CHECK(fits && t->scalar_type() == type, op, ": ", argument, " must be ", dtype_name(type), " of shape [",
                    rows, columns >= 0 ? ", " + std::to_string(columns) : "", "], got ", dtype_name(t->scalar_type()),
                    " ", shape_of(*t));
    held = torch::stable::contiguous(*t);
    data = static_cast<const T*>(held->const_data_ptr());
  }
};

// x arranged and y allocated, for weights of `outputs` rows.
struct Operands {
  Tensor x, arranged, y;
  Linear linear;

  template <class Arrange>
  Operands(const char* op, const Tensor& given, int64_t outputs, const float* bias, int64_t step, bool as_it_is,
           Arrange arrange)
      : x(given), arranged(given), y(given) {
    const ScalarType type = x.scalar_type();
    linear.bfloat16 = type == ScalarType::BFloat16;
    STD_TORCH_CHECK(type == ScalarType::Float || linear.bfloat16, op, ": x must be float32 or bfloat16, got ",
                    dtype_name(type));
    linear.depth = x.size(x.dim() - 1);
    linear.padded = padded_to(linear.depth, step);
    linear.outputs = outputs;
    linear.bias = bias;
    std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
    shape.back() = outputs;
    linear.count = 1;
    for (size_t d = 0; d + 1 < shape.size(); ++d) linear.count *= shape[d];
    y = torch::stable::empty(shape, type);
    linear.y = y.mutable_data_ptr();
    if (linear.count == 0 || outputs == 0) return;
    x = torch::stable::contiguous(x);
    if (as_it_is && !linear.bfloat16 && linear.padded == linear.depth) {
      arranged = x;
    } else {
      arranged = torch::stable::empty({linear.count, linear.padded}, ScalarType::Float);
      float* to = static_cast<float*>(arranged.mutable_data_ptr());
      const int64_t grain = std::max<int64_t>(1, kGrain / 8 / std::max<int64_t>(1, linear.padded));
      torch::stable::parallel_for(0, linear.count, grain, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const int64_t at = row * linear.depth;
          if (linear.bfloat16)
            arrange(static_cast<const BFloat16*>(x.const_data_ptr()) + at, linear.depth, to + row * linear.padded);
          else
            arrange(static_cast<const float*>(x.const_data_ptr()) + at, linear.depth, to + row * linear.padded);
        }
      });
    }
    linear.x = static_cast<const float*>(arranged.const_data_ptr());
  }

  // kernel(begin, end) over the outputs
  template <class F>
  void run(F kernel) const {
    if (linear.count == 0 || linear.outputs == 0) return;
    const int64_t block = kBlock * std::max<int64_t>(1, linear.depth * linear.count);
    torch::stable::parallel_for(
        0, (linear.outputs + kBlock - 1) / kBlock, std::max<int64_t>(1, kGrain / block),
        [&](int64_t begin, int64_t end) { kernel(begin * kBlock, std::min(end * kBlock, linear.outputs)); });
  }
};

Tensor int4_linear_cpu(const Tensor& x, const Tensor& packed, const Tensor& scale, std::optional<Tensor> zero_point,
                       std::optional<Tensor> bias, bool is_signed) {
  const char* op = "int4_linear";
  STD_TORCH_CHECK(x.dim() >= 1 && packed.dim() == 2 && packed.size(1) == (x.size(x.dim() - 1) + 1) / 2, op,
                  ": x must be [..., K] and packed [N, ceil(K / 2)], got ", shape_of(x), " and ", shape_of(packed));
  const int64_t outputs = packed.size(0), depth = x.size(x.dim() - 1);
  STD_TORCH_CHECK(scale.dim() == 2 && scale.size(1) >= 1 && depth % scale.size(1) == 0, op,
                  ": scale must be [N, G] with G a divisor of K = ", depth, ", got ", shape_of(scale));
  const int64_t groups = scale.size(1);
  const Array<uint8_t> weight(op, "packed", packed, ScalarType::Byte, outputs, packed.size(1));
  const Array<float> scales(op, "scale", scale, ScalarType::Float, outputs, groups);
  const Array<int32_t> zeros(op, "zero_point", zero_point, ScalarType::Int, outputs, groups);
  const Array<float> biases(op, "bias", bias, ScalarType::Float, outputs);
  const Operands operands(op, x, outputs, biases.data, kChunk, false,
                          [](const auto* from, int64_t n, float* to) { arrange_int4(from, n, to); });
  Int4 problem;
  problem.linear = operands.linear;
  problem.packed = weight.data;
  problem.scale = scales.data;
  problem.zero = zeros.data;
  problem.is_signed = is_signed;
  set_groups(problem, groups);
  operands.run([&](int64_t begin, int64_t end) { kernels(active_isa()).int4(problem, begin, end); });
  return operands.y;
}

Tensor linear_24_cpu(const Tensor& x, const Tensor& values, const Tensor& indices, std::optional<Tensor> bias) {
  const char* op = "linear_24";
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
  const Array<float> weight(op, "values", values, ScalarType::Float, outputs, values.size(1));
  const Array<uint8_t> positions(op, "indices", indices, ScalarType::Byte, outputs, indices.size(1));
  const Array<float> biases(op, "bias", bias, ScalarType::Float, outputs);
  const Operands operands(op, x, outputs, biases.data, kStep, true,
                          [](const auto* from, int64_t n, float* to) { arrange_sparse(from, n, to); });
  const Sparse problem{operands.linear, weight.data, positions.data};
  operands.run([&](int64_t begin, int64_t end) { kernels(active_isa()).sparse(problem, begin, end); });
  return operands.y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseq, CPU, m) {
  m.impl("int4_linear", TORCH_BOX(&int4_linear_cpu));
  m.impl("linear_24", TORCH_BOX(&linear_24_cpu));
}

}  // namespace sparseq::weight_only
