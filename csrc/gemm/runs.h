// Where an input lies, as rows at one stride, and what makes it u8 pixels. No torch.
#pragma once

#include "gemm.h"

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

// A RowQuantizer over runs, in tasks that stay in L1 while they are transposed.
struct Conversion {
  RowQuantizer whole;  // input and output are the first row's
  Runs runs;
  int64_t element = 4;                     // bytes of one
  int64_t lines = 1, line = 0, image = 0;  // bytes of output between runs, and between each `lines` of them
  bool flat = false;                       // all of a task is one row
  int64_t block = 1, blocks = 1;           // rows of a task, tasks of a run

  Conversion(const RowQuantizer& q, const Runs& r, int64_t element_size);
  int64_t tasks() const { return runs.count * blocks; }
  void run(const Kernels& kernel, int64_t begin, int64_t end) const;
};

}  // namespace sparseq::gemm
