// Linear layers whose weights alone are small: INT4 with scales per group, and 2:4 floats. Made for few
// rows of x, where reading the weight is the work; the kernels read its canonical form, without tiles. No torch.
//
// Every output is one sum of sixteen lanes in a fixed order, whatever the number of rows, threads and the ISA.
#pragma once

#include <cstdint>

#include "../core/epilogue.h"
#include "../core/half.h"
#include "../core/isa.h"

namespace sparseq::weight_only {

constexpr int64_t kChunk = 128;         // INT4 columns of a step: a lane holds 8 neighbours, 4 bytes
constexpr int64_t kStep = 32;           // 2:4 columns of a step: 16 kept values
constexpr int64_t kBlock = 8;           // outputs of a task
constexpr int64_t kPanel = 512 * 1024;  // bytes of x that stay in the second-level cache while weights go by

// What both products read and write. x is float32, arranged (below).
struct Linear {
  const float* x = nullptr;
  int64_t count = 0, padded = 0;  // rows of x, floats each
  int64_t depth = 0, outputs = 0;
  const float* bias = nullptr;  // [outputs] or null
  void* y = nullptr;            // [count, outputs]
  Element type = Element::f32;  // of y: f32, f16 or bf16
};

// How the groups of a scale lie in chunks.
enum class Groups {
  whole,   // a chunk has one scale
  spread,  // 2, 4, 8 or 16 scales
  lanes,   // each lane has one scale
  any,
};

struct Int4 {
  Linear linear;
  const uint8_t* packed = nullptr;  // [outputs, ceil(depth / 2)]
  const float* scale = nullptr;     // [outputs, groups]
  const int32_t* zero = nullptr;    // [outputs, groups] or null
  int64_t groups = 1, group_size = 0;
  bool is_signed = true;
  Groups kind = Groups::any;
  int64_t span = 1, step = 1;  // so many chunks have so many groups
  int shift = 0;               // spread: step is 16 >> shift
};

struct Sparse {
  Linear linear;
  const void* values = nullptr;      // [outputs, 2 * ceil(depth / 4)]
  Element type = Element::f32;       // of the values: f32, f16 or bf16
  const uint8_t* indices = nullptr;  // [outputs, ceil(ceil(depth / 4) / 2)]
};

void set_groups(Int4& p, int64_t groups);  // groups, group_size, kind, span from l.depth

// x as the kernels read it, zeros past the end. INT4: each chunk as [8][16], one lane's neighbours apart.
template <class T>
void arrange_int4(const T* x, int64_t depth, float* to);
template <class T>
void arrange_sparse(const T* x, int64_t depth, float* to);

constexpr int64_t padded_to(int64_t depth, int64_t step) { return (depth + step - 1) / step * step; }

struct Kernels {
  Isa isa;
  void (*int4)(const Int4&, int64_t begin, int64_t end);  // outputs
  void (*sparse)(const Sparse&, int64_t begin, int64_t end);
};

const Kernels& kernels_scalar();
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
const Kernels& kernels(Isa isa);

}  // namespace sparseq::weight_only
