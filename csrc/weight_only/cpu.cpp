// Weight-only linear layers on the CPU: x is arranged once, outputs are shared out to torch's threads.
#include "arguments.h"
#include "weight_only.h"

namespace sparseq::weight_only {
namespace {

constexpr int64_t kGrain = 262144;  // products: about 10 us of work, well over a thread's wake-up

// x arranged: rows of whole steps. `as_it_is`: floats that fill their steps need no copy.
struct Arranged {
  Tensor x;
  Linear linear;

  template <class Arrange>
  Arranged(const Rows& rows, const Array& bias, int64_t step, bool as_it_is, Arrange arrange) : x(rows.x) {
    Tensor y = rows.y;
    linear.type = rows.type;
    linear.count = rows.count, linear.depth = rows.depth, linear.outputs = rows.outputs;
    linear.padded = padded_to(linear.depth, step);
    linear.bias = bias.as<float>();
    linear.y = y.mutable_data_ptr();
    if (rows.empty()) return;
    if (!as_it_is || rows.type != Element::f32 || linear.padded != linear.depth) {
      x = torch::stable::empty({linear.count, linear.padded}, ScalarType::Float);
      const auto* from = rows.x.const_data_ptr();
      switch (rows.type) {
        case Element::f16: fill(static_cast<const Half*>(from), arrange); break;
        case Element::bf16: fill(static_cast<const BFloat16*>(from), arrange); break;
        default: fill(static_cast<const float*>(from), arrange);
      }
    }
    linear.x = static_cast<const float*>(x.const_data_ptr());
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

 private:
  template <class T, class Arrange>
  void fill(const T* from, Arrange arrange) {
    float* to = static_cast<float*>(x.mutable_data_ptr());
    const int64_t grain = std::max<int64_t>(1, kGrain / 8 / std::max<int64_t>(1, linear.padded));
    torch::stable::parallel_for(0, linear.count, grain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        arrange(from + row * linear.depth, linear.depth, to + row * linear.padded);
    });
  }
};

Tensor int4_linear_cpu(const Tensor& x, const Tensor& packed, const Tensor& scale, std::optional<Tensor> zero_point,
                       std::optional<Tensor> bias, bool is_signed) {
  const Int4Arguments a(x, packed, scale, zero_point, bias);
  const Arranged arranged(a.rows, a.bias, kChunk, false,
                          [](const auto* from, int64_t n, float* to) { arrange_int4(from, n, to); });
  Int4 problem;
  problem.linear = arranged.linear;
  problem.packed = a.packed.as<uint8_t>();
  problem.scale = a.scale.as<float>();
  problem.zero = a.zero.as<int32_t>();
  problem.is_signed = is_signed;
  set_groups(problem, a.groups);
  arranged.run([&](int64_t begin, int64_t end) { kernels(active_isa()).int4(problem, begin, end); });
  return a.rows.y;
}

// Tiles are for GPUs: here the canonical form is read as it is.
Tensor linear_24_cpu(const Tensor& x, const Tensor& values, const Tensor& indices, std::optional<Tensor> bias,
                     std::optional<Tensor>) {
  const SparseArguments a(x, values, indices, bias);
  const Arranged arranged(a.rows, a.bias, kStep, true,
                          [](const auto* from, int64_t n, float* to) { arrange_sparse(from, n, to); });
  const Sparse problem{arranged.linear, a.values.as<void>(), a.type, a.indices.as<uint8_t>()};
  arranged.run([&](int64_t begin, int64_t end) { kernels(active_isa()).sparse(problem, begin, end); });
  return a.rows.y;
}

Tensor tiles_24_cpu(const Tensor& values, const Tensor& indices, int64_t columns) {
  const TilesArguments checked(values, indices, columns);
  return torch::stable::empty({0}, ScalarType::Byte);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseq, CPU, m) {
  m.impl("int4_linear", TORCH_BOX(&int4_linear_cpu));
  m.impl("linear_24", TORCH_BOX(&linear_24_cpu));
  m.impl("tiles_24", TORCH_BOX(&tiles_24_cpu));
}

}  // namespace sparseq::weight_only
