// What a program's instructions do besides products, one table of functions per ISA. No torch.
//
// sparseq/program.py defines every instruction; each step is one float32 operation in the order given
// there, a product and a sum one only where it says so, so that all ISAs and numbers of threads give the same bits.
#pragma once

#include <cstdint>

#include "../core/epilogue.h"
#include "../core/isa.h"

namespace sparseq::network {

// A value [N, H, W, C], or some channels of one: f32, or u8 with real = (q - zero) * scale.
struct View {
  const void* data = nullptr;
  Element type = Element::f32;
  int64_t images = 1, height = 1, width = 1, channels = 1;
  int64_t pixel = 1;  // elements from pixel to pixel, at least channels; images and lines follow each other
  float scale = 1.0f;
  int32_t zero = 0;
  int64_t pixels() const { return images * height * width; }
};

// Where a result goes: f32, or u8 as clamp(rne(y / scale) + zero, low, high), NaN -> zero.
struct Target {
  void* data = nullptr;
  Element type = Element::f32;
  int64_t pixel = 1;
  float scale = 1.0f;
  int32_t zero = 0, low = 0, high = 255;
};

// y = act(real(x) * scale[c] + shift[c])
struct Map {
  View x;
  Target y;
  const float* scale = nullptr;  // [C], with shift or neither
  const float* shift = nullptr;
  Activation activation = Activation::none;
  const uint8_t* bytes = nullptr;  // u8 to u8 without scale and shift: the 256 results (map_bytes), or null
};

// y = act(real(a) + real(b)), or the product
struct Binary {
  View a, b;  // of size 1 in images, or in height and width, either is repeated
  Target y;
  bool product = false;
  Activation activation = Activation::none;
  int64_t images = 1, height = 1, width = 1;  // of y
};

enum class PoolKind : int32_t { max, average, adaptive };

struct Pool {
  View x;
  Target y;
  PoolKind kind = PoolKind::max;
  int64_t out_height = 1, out_width = 1;
  int64_t kernel_height = 1, kernel_width = 1;  // not of adaptive
  int64_t stride_height = 1, stride_width = 1;
  int64_t pad_top = 0, pad_left = 0;
  int64_t dilation_height = 1, dilation_width = 1;  // of max
  bool include_pad = true;                          // of average, as torch counts (ceil: the padded image's pixels)
  int64_t divisor = 0;                              // of average: instead of the count, unless 0
};

// mean = sum(x) / C, d = x - mean, variance = sum(d d) / C, y = act((d * (1 / sqrt(variance + eps))) * weight + bias).
// A sum runs in sixteen lanes (lane l adds elements l, l + 16, ... in order, from 0), which are then added in
// halves: l and l + 8, l and l + 4, l + 2, l + 1.
struct LayerNorm {
  View x;
  Target y;
  const float* weight = nullptr;  // [C], with bias or neither
  const float* bias = nullptr;
  float eps = 1e-5f;
  Activation activation = Activation::none;
};

// Heads side by side, `depth` channels each. For every query:
// s_j = scale * sum_d q_d k_jd, p_j = exp(s_j - max s), y_c = (sum_j p_j v_jc) * (1 / sum_j p_j); causal: j up to the
// query's own number. All sums in order from 0; those of products round once a product and sum (fma).
struct Attention {
  View q, k, v;  // float32; pixels of q are queries, those of k and v keys
  Target y;      // [images, pixels of q, heads * depth]
  int64_t heads = 1, depth = 1;
  float scale = 1.0f;
  bool causal = false;
  static constexpr int64_t kBlock = 64;  // queries of one head: an item
};

struct Kernels {
  void (*map)(const Map&, int64_t begin, int64_t end);               // pixels
  void (*binary)(const Binary&, int64_t begin, int64_t end);         // pixels of y
  void (*pool)(const Pool&, int64_t begin, int64_t end,              // pixels of y,
               int64_t channel_begin, int64_t channel_end);          // and channels
  void (*layer_norm)(const LayerNorm&, int64_t begin, int64_t end);  // pixels
  void (*attention)(const Attention&, int64_t begin, int64_t end,    // blocks of each head of each image
                    float* workspace);                               // [kBlock * (depth + keys)], aligned
};

const Kernels& kernels_scalar();
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
const Kernels& kernels(Isa isa);

// The 256 results of a Map from u8 to u8 without scale and shift; x and y say the grids.
void map_bytes(const Map& map, uint8_t* table);

}  // namespace sparseq::network
