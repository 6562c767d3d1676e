// Small helpers over torch's stable ABI, shared by the bindings of every family.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "recycle.h"

namespace sparseq {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline bool same_strides(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  return true;
}

// torch.empty_like(x, dtype=dtype): keeps the strides of a dense x, whatever their order.
inline Tensor empty_like(const Tensor& x, ScalarType dtype) {
  using torch::stable::detail::from;
  std::array<StableIValue, 6> stack{from(x),
                                    from(std::optional<ScalarType>(dtype)),
                                    from(std::optional<torch::headeronly::Layout>()),
                                    from(std::optional<torch::stable::Device>()),
                                    from(std::optional<bool>()),
                                    from(std::optional<torch::headeronly::MemoryFormat>())};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// An uninitialised output on the CPU, laid out as the dense x.
inline Tensor fresh_like(const Tensor& x, ScalarType dtype, size_t element_size) {
  const size_t size = size_t(x.numel()) * element_size;
  if (size < kRecycled) return empty_like(x, dtype);
  void* block = take_block(size);
  return torch::stable::from_blob(block, x.sizes(), x.strides(), x.device(), dtype,
                                  [size](void* data) { give_block(data, size); });
}

// An uninitialised output on the CPU, row-major, or channels_last where it is an image.
inline Tensor fresh(const std::vector<int64_t>& sizes, ScalarType dtype, size_t element_size, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  size_t size = element_size;
  for (const int64_t n : sizes) size *= size_t(n);
  if (size < kRecycled)
    return torch::stable::empty(sizes, dtype, std::nullopt, std::nullopt, std::nullopt,
                                channels_last ? std::optional(MemoryFormat::ChannelsLast) : std::nullopt);
  std::vector<int64_t> strides(sizes.size(), 1);
  if (channels_last)
    strides = {sizes[1] * sizes[2] * sizes[3], 1, sizes[1] * sizes[3], sizes[1]};
  else
    for (size_t d = sizes.size(); d-- > 1;) strides[d - 1] = strides[d] * sizes[d];
  void* block = take_block(size);
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  return torch::stable::from_blob(block, sizes, strides, cpu, dtype, [size](void* data) { give_block(data, size); });
}

// x, or a copy of it laid out as `like`.
inline Tensor laid_out_as(const Tensor& x, const Tensor& like) {
  if (same_strides(x, like)) return x;
  Tensor copy = empty_like(like, x.scalar_type());
  torch::stable::copy_(copy, x);
  return copy;
}

// Whether x fills its memory without gaps or overlaps, in any order of its dimensions.
inline bool is_dense(const Tensor& x) {
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int64_t d = 0; d < x.dim(); ++d)
    if (x.size(d) != 1) dims.emplace_back(x.stride(d), x.size(d));
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

// torch.contiguous costs a trip through the dispatcher even where there is nothing to do.
inline Tensor made_contiguous(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

inline std::string shape_of(const Tensor& x) {
  std::string text = "[";
  for (int64_t d = 0; d < x.dim(); ++d) text += (d ? ", " : "") + std::to_string(x.size(d));
  return text + "]";
}

inline const char* dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "float32";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Double: return "float64";
    case ScalarType::Char: return "int8";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Bool: return "bool";
    default: return "another dtype";
  }
}

}  // namespace sparseq
