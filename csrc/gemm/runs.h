// Where an input lies, as rows at one stride. No torch.
#pragma once

#include <cstdint>

namespace sparseq::gemm {

// Where x lies: strides in elements, pixels of channels. The rows of a linear layer are pixels.
struct Pixels {
  int64_t batch, height, width, channels;
  int64_t image, line, step, plane;
};

// Pixels next to each other at one stride: as many as there are, or the outer dimensions' share.
struct Runs {
  int64_t sizes[3], strides[3];
  int64_t length = 1, stride, count = 1;
  int outer = 3;
  explicit Runs(const Pixels& p, int most = 3);  // at most so many dimensions in a run: 1 a line's pixels
  int64_t offset(int64_t run) const;             // elements
};

}  // namespace sparseq::gemm
