// A program as sparseq/program.py defines it, read from its text and checked as far as that goes. No torch.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "../core/epilogue.h"

namespace sparseq::network {

enum class Op { map, conv, max_pool, avg_pool, adaptive, add, mul, concat, pad, layer_norm, attention };
enum class Form { image, pixels, rows, vector };

struct Grid {
  float scale = 1.0f;
  int32_t zero = 0, low = 0, high = 255;
  bool operator==(const Grid&) const = default;
};

struct Instruction {
  Op op;
  std::vector<int32_t> inputs, constants;
  std::optional<Grid> grid;  // none: float32
  Activation activation = Activation::none;
  std::array<int64_t, 2> kernel{1, 1}, stride{1, 1}, padding{0, 0}, dilation{1, 1}, size{1, 1};  // rows, columns
  std::array<int64_t, 4> around{};  // top, bottom, left, right
  int64_t groups = 1, columns = 1, divisor = 0;
  std::array<int64_t, 3> first{};  // of attention: where in q, k and v its channels begin
  int64_t heads = 0, width = 0;
  bool ceil = false, include_pad = true, causal = false;
  float eps = 1e-5f, scale = 1.0f;
};

struct Output {
  int32_t value;
  Form form;
};

struct Program {
  std::vector<Form> inputs;
  std::vector<Instruction> instructions;
  std::vector<Output> outputs;
  int32_t constants = 0;  // one more than the highest number used

  int32_t values() const { return int32_t(inputs.size() + instructions.size()); }
  const Instruction* maker(int32_t value) const {  // null: an input
    return value < int32_t(inputs.size()) ? nullptr : &instructions[size_t(value) - inputs.size()];
  }
  const Grid* grid(int32_t value) const {  // null: float32
    const Instruction* i = maker(value);
    return i != nullptr && i->grid ? &*i->grid : nullptr;
  }
};

// "instruction 3 (conv)", as messages name it
std::string name_of(const Program& program, size_t instruction);
const char* name_of(Form form);

// Throws std::invalid_argument with one sentence. Values are defined before they are used, numbers are in their
// ranges, convolutions read values on grids, attention float32.
Program parse_program(std::string_view text);

}  // namespace sparseq::network
