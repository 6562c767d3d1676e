// Where a program's values lie: in one arena, in the tensors of the call, or in parts of other values. No torch.
#pragma once

#include "shapes.h"

namespace sparseq::network {

// An address of a running call: bytes from one of its bases, which are the arena, the inputs and the outputs.
struct Place {
  int32_t base = 0;
  int64_t offset = 0;
};

struct Home {
  Place place;
  int64_t pixel = 1;    // elements from pixel to pixel
  bool loaded = false;  // an input that is copied here first, since its strides are not a value's
};

struct Layout {
  std::vector<Home> homes;     // of every value
  std::vector<int32_t> whole;  // of every value: the concat or pad whose part it is made in, or -1
  int64_t bytes = 0;           // of the arena
  size_t inputs = 0;

  int32_t input(size_t number) const { return int32_t(1 + number); }  // bases
  int32_t output(size_t number) const { return int32_t(1 + inputs + number); }
};

// Whether an instruction only quantises an input: it reads any strides.
bool quantises(const Program& program, const Instruction& i);

// within: of every value the instruction that makes it, part by part, when it wants it, or -1 if its own does: no
// memory is for it, and what it is made of lasts until then.
Layout lay_out(const Program& program, const std::vector<Shape>& shapes, const std::vector<gemm::Pixels>& inputs,
               const std::vector<int64_t>& within);

}  // namespace sparseq::network
