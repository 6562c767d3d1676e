// The weight-only products on CUDA: torch tensors in, kernels on torch's current stream. No kernel is written here.
#include "../core/cuda.h"
#include "../gemm/launch.h"
#include "arguments.h"
#include "launch.h"

namespace sparseq::weight_only {
namespace {

cuda::Linear linear_of(const Rows& rows, const Array& bias) {
  Tensor y = rows.y;
  return {rows.x.const_data_ptr(), rows.type,           rows.count, rows.depth, rows.outputs,
          bias.as<float>(),        y.mutable_data_ptr()};
}

Tensor int4_linear_cuda(const Tensor& x, const Tensor& packed, const Tensor& scale, std::optional<Tensor> zero_point,
                        std::optional<Tensor> bias, bool is_signed) {
  const OnDevice device(x);
  const Int4Arguments a(x, packed, scale, zero_point, bias);
  cuda::int4_linear(linear_of(a.rows, a.bias),
                    {a.packed.as<uint8_t>(), a.scale.as<float>(), a.zero.as<int32_t>(), a.groups, is_signed},
                    device.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return a.rows.y;
}

// --- on tensor cores: values and x of one 16-bit type, the weight as tiles ---

// So many rows without tiles are multiplied from the canonical form: making tiles reads it, and writes as much.
constexpr int64_t kFewRows = 8;

gemm::cuda::CudaTiling tiling_of(int64_t outputs, int64_t columns) {
  return {gemm::TileKind::sparse24, 2, {1, outputs, 1, columns}};
}

bool on_tensor_cores(Element type) { return type == Element::f16 || type == Element::bf16; }

Tensor tiles_of(const Array& values, const Array& indices, const gemm::cuda::CudaTiling& tiling, cudaStream_t stream) {
  Tensor tiles = empty_on(*values.held, {tiling.size}, ScalarType::Byte);
  gemm::cuda::pack_tiles_24(tiling, values.as<void>(), indices.as<uint8_t>(),
                            static_cast<uint8_t*>(tiles.mutable_data_ptr()), stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return tiles;
}

void multiply_tiles(const SparseArguments& a, const std::optional<Tensor>& given, cudaStream_t stream) {
  const Rows& rows = a.rows;
  const gemm::cuda::CudaTiling tiling = tiling_of(rows.outputs, rows.depth);
  const Tensor tiles = given ? *given : tiles_of(a.values, a.indices, tiling, stream);
  gemm::cuda::Rows x;
  x.data = rows.x.const_data_ptr();
  x.stride = 2 * rows.depth;
  x.count = rows.count;
  Tensor y = rows.y;
  gemm::cuda::Finish finish;
  finish.bias = a.bias.as<float>();
  finish.output_type = rows.type, finish.output = y.mutable_data_ptr(), finish.output_stride = rows.outputs;
  int multiprocessors = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, rows.x.get_device_index()));
  const gemm::cuda::Cut cut = gemm::cuda::cut_product(tiling, rows.count, multiprocessors);
  Tensor workspace = y;
  if (cut.workspace) workspace = empty_on(y, {cut.workspace}, ScalarType::Byte);
  gemm::cuda::float_product(rows.type, tiling, static_cast<const uint8_t*>(tiles.const_data_ptr()), x, finish, cut,
                            cut.workspace ? workspace.mutable_data_ptr() : nullptr, stream);
}

Tensor linear_24_cuda(const Tensor& x, const Tensor& values, const Tensor& indices, std::optional<Tensor> bias,
                      std::optional<Tensor> tiles) {
  const OnDevice device(x);
  const SparseArguments a(x, values, indices, bias);
  if (tiles) {
    const int64_t wanted = on_tensor_cores(a.type) ? tiling_of(a.rows.outputs, a.rows.depth).size : 0;
    STD_TORCH_CHECK(tiles->scalar_type() == ScalarType::Byte && tiles->is_contiguous() && tiles->numel() == wanted &&
                        tiles->device() == x.device(),
                    a.op, ": tiles must be made by tiles_24 for this weight, on this device");
    if (wanted == 0) tiles.reset();
  }
  if (a.rows.empty()) return a.rows.y;
  if (on_tensor_cores(a.type) && a.type == a.rows.type && a.rows.depth > 0 && (tiles || a.rows.count > kFewRows))
    multiply_tiles(a, tiles, device.stream());
  else
    cuda::linear_24(linear_of(a.rows, a.bias), {a.values.as<void>(), a.type, a.indices.as<uint8_t>()}, device.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return a.rows.y;
}

Tensor tiles_24_cuda(const Tensor& values, const Tensor& indices, int64_t columns) {
  const OnDevice device(values);
  const TilesArguments a(values, indices, columns);
  if (!on_tensor_cores(a.type)) return empty_on(values, {0}, ScalarType::Byte);
  return tiles_of(a.values, a.indices, tiling_of(a.outputs, a.columns), device.stream());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseq, CUDA, m) {
  m.impl("int4_linear", TORCH_BOX(&int4_linear_cuda));
  m.impl("linear_24", TORCH_BOX(&linear_24_cuda));
  m.impl("tiles_24", TORCH_BOX(&tiles_24_cuda));
}

}  // namespace sparseq::weight_only
