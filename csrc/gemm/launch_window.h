// What the launchers of all products derive from their arguments. Included by .cu files.
#pragma once

#include <algorithm>

#include "loader.cuh"

namespace sparseq::gemm::cuda {
namespace {

// x.count of rows, or of output pixels.
inline Window window_of(const CudaTiling& tiling, const Rows& x) {
  const ConvShape none;
  const ConvShape& c = x.conv != nullptr ? *x.conv : none;
  Window w{};
  w.x = static_cast<const uint8_t*>(x.data);
  w.stride = x.stride;
  w.count = x.count;
  w.bytes = int32_t(tiling.shape.in_channels * tiling.element);
  w.tap = int32_t(tiling.tap * tiling.element);
  w.taps = int32_t(tiling.shape.taps);
  w.group_bytes = tiling.shape.in_channels * tiling.element;
  w.zero = x.zero;
  w.words = (reinterpret_cast<uintptr_t>(x.data) | uintptr_t(x.stride) |
             uintptr_t(tiling.shape.groups > 1 ? w.group_bytes : 0)) %
                4 ==
            0;
  w.height = int32_t(c.height), w.width = int32_t(c.width), w.kernel_width = int32_t(c.kernel_width);
  w.stride_y = int32_t(c.stride_height), w.stride_x = int32_t(c.stride_width);
  w.pad_y = int32_t(c.pad_top), w.pad_x = int32_t(c.pad_left);
  w.dilation_y = int32_t(c.dilation_height), w.dilation_x = int32_t(c.dilation_width);
  w.out_width = Divider(c.out_width), w.out_height = Divider(c.out_height);
  return w;
}

// A convolution whose output pixel m reads input pixel m is a product of rows.
inline bool pointwise(const ConvShape& c) {
  return c.kernel_height == 1 && c.kernel_width == 1 && c.stride_height == 1 && c.stride_width == 1 && c.pad_top == 0 &&
         c.pad_left == 0 && c.out_height == c.height && c.out_width == c.width;
}

inline Source source_of(const CudaTiling& tiling, const Rows& x) {
  const int64_t group = tiling.shape.groups > 1 ? tiling.shape.in_channels * tiling.element : 0;
  const bool chunks = (reinterpret_cast<uintptr_t>(x.data) | uintptr_t(x.stride) | uintptr_t(group)) % kChunk == 0 &&
                      tiling.unit * tiling.element == kChunk;
  if (!chunks) return Source::any;
  return x.conv == nullptr || pointwise(*x.conv) ? Source::rows : Source::windows;
}

// Whether every run of 8 outputs can be read and written in the widest accesses that hold it.
inline bool vectors_fit(const Finish& f, bool runs_fit) {
  const auto size = [](Element type) {
    return type == Element::f32 ? 4 : type == Element::u8 || type == Element::s8 ? 1 : 2;
  };
  const auto fits = [&](Element type, const void* p, int64_t stride) {
    const int64_t bytes = std::min(kVectorBytes, 8 * size(type));
    return reinterpret_cast<uintptr_t>(p) % size_t(bytes) == 0 && stride * size(type) % bytes == 0;
  };
  return runs_fit && fits(f.output_type, f.output, f.output_stride) &&
         (f.residual_type == Element::none || fits(f.residual_type, f.residual, f.residual_stride));
}

}  // namespace
}  // namespace sparseq::gemm::cuda
