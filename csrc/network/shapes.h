// The sizes of a call: of its tensors, and of every value of a program. No torch.
#pragma once

#include "../gemm/runs.h"
#include "program.h"

namespace sparseq::network {

struct Shape {
  int64_t images = 1, height = 1, width = 1, channels = 1;
  int64_t pixels() const { return images * height * width; }
  bool operator==(const Shape&) const = default;
};

// What a plan must know of a tensor.
struct TensorInfo {
  Element type = Element::none;
  bool contiguous = true;
  std::vector<int64_t> sizes, strides;
};

// Of every value. Throws std::invalid_argument with one sentence where tensors do not fit the program.
std::vector<Shape> shapes_of(const Program& program, const std::vector<TensorInfo>& inputs,
                             const std::vector<TensorInfo>& constants);

gemm::Pixels pixels_of(Form form, const TensorInfo& tensor);
std::vector<int64_t> tensor_shape(Form form, const Shape& shape);

}  // namespace sparseq::network
