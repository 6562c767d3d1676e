// The 2:4 ops on CUDA: torch tensors in, kernels on torch's current stream. No kernel is written here.
#include "../core/cuda.h"
#include "arguments.h"
#include "fault.h"
#include "launch.h"

namespace sparseq {
namespace {

Tensor mask_24_cuda(const Tensor& weight) {
  const OnDevice device(weight);
  const ToMask24 o(weight);
  with_float_bits("mask_24", weight, [&](auto infinity) {
    cuda::mask_24(static_cast<const decltype(infinity)*>(o.dense.const_data_ptr()), infinity,
                  static_cast<uint8_t*>(o.mask.mutable_data_ptr()), o.shape, device.stream());
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return o.mask;
}

std::tuple<Tensor, Tensor> pack_24_cuda(const Tensor& weight) {
  const OnDevice device(weight);
  const ToPack24 o(weight);
  FaultWord fault(weight, device.stream());
  with_elements("pack_24", "weight", weight, [&](auto element) {
    using T = decltype(element);
    cuda::pack_24(static_cast<const T*>(o.dense.const_data_ptr()), o.shape,
                  static_cast<T*>(o.values.mutable_data_ptr()), static_cast<uint8_t*>(o.indices.mutable_data_ptr()),
                  fault.data(), device.stream());
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  refuse("pack_24", "weight", o.shape, fault.read(o.shape));
  return {o.values, o.indices};
}

Tensor unpack_24_cuda(const Tensor& values, const Tensor& indices, int64_t columns) {
  STD_TORCH_CHECK(values.device() == indices.device(), "unpack_24: indices must be on values' device");
  const OnDevice device(values);
  const ToUnpack24 o(values, indices, columns);
  FaultWord fault(values, device.stream());
  with_elements("unpack_24", "values", values, [&](auto element) {
    using T = decltype(element);
    cuda::unpack_24(static_cast<const T*>(o.values.const_data_ptr()),
                    static_cast<const uint8_t*>(o.indices.const_data_ptr()), o.shape,
                    static_cast<T*>(o.weight.mutable_data_ptr()), fault.data(), device.stream());
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  refuse("unpack_24", "values and indices", o.shape, fault.read(o.shape));
  return o.weight;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseq, CUDA, m) {
  m.impl("mask_24", TORCH_BOX(&mask_24_cuda));
  m.impl("pack_24", TORCH_BOX(&pack_24_cuda));
  m.impl("unpack_24", TORCH_BOX(&unpack_24_cuda));
}

}  // namespace sparseq
