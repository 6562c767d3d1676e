// INT8 matrix products and convolutions, dense and 2:4: what the binding calls. No torch here.
//
//   Layout layout = kernels.layout;                        // of the running ISA
//   PackedWeight w = pack_dense(...) or pack_sparse24(...) // once
//   quantize_rows / shift_rows                             // any number of threads, ranges of rows
//   WorkPlan plan = plan_work(w, conv, rows, caches, threads);
//   kernels.run(w, input, epilogue, plan, begin, end);     // any number of threads, ranges of plan.items
#pragma once
#include <cstdint>
#include <vector>

#include "../core/epilogue.h"
#include "packed.h"

namespace sparseq {

// NHWC. The output pixel m = (image * out_height + y) * out_width + x is row m of the matrix product.
struct ConvShape {
  int64_t batch = 1, height = 1, width = 1;
  int64_t out_height = 1, out_width = 1;
  int64_t kernel_height = 1, kernel_width = 1;
  int64_t stride_height = 1, stride_width = 1;
  int64_t pad_top = 0, pad_left = 0;
  int64_t dilation_height = 1, dilation_width = 1;
};

// Kernels read whole blocks: up to this many bytes after the last byte of the input must be readable (their
// values do not matter: the weights there are 0). Between rows any bytes may lie.
constexpr int64_t kInputSlack = 64;

// Prepared activations: u8; a signed activation a is stored as a + 128 (and zero in the epilogue is + 128).
struct Input {
  const uint8_t* data = nullptr;
  int64_t stride = 0;                // bytes from row to row, or from pixel to pixel
  const ConvShape* conv = nullptr;   // null: row m is at data + m * stride
  const uint8_t* padding = nullptr;  // conv: one pixel of zero points, all channels + kInputSlack bytes
  int64_t line = 0;                  // conv: pixels from line to line, or 0: the image's width
};

struct WorkPlan {
  int64_t rows = 0;
  int64_t start = 0;      // the first row, not of Winograd's; of AMX's the first of a line, and all in one image
  int64_t row_block = 0;  // rows per work item; their activations stay in L2
  int64_t row_blocks = 0;
  int64_t items = 0;  // item = (row block, conv group, group of output channels)
  int64_t claim = 1;  // items that a thread had better take together
  int winograd = 0;   // else outputs a side of its tiles; a row of a block is then a strip (winograd.h)
  int64_t amx = 0;    // else images of a block, of each of which it has row_block lines of outputs (amx.h)
};

// What so many turns of each thread take; the others wait for the slowest one: cores are often shared.
inline double turns_taken(int64_t turns, int threads) { return static_cast<double>(turns) + (threads > 1 ? 0.12 : 0); }

// conv: of the input, or null. any_rows: blocks may begin and end at any row, not only at a line's.
WorkPlan plan_work(const Tiles& weight, const ConvShape* conv, int64_t rows, const CacheSizes& caches, int threads,
                   bool any_rows = false);

// What becomes prepared rows. Floats are quantised, q = clamp(rne(x / scale) + zero_point, low, high) with
// NaN -> zero_point (section 4 of the design); bytes are copied. Signed values are stored + 128.
struct RowQuantizer {
  const void* input = nullptr;
  Element input_type = Element::f32;
  int64_t columns = 0;
  int64_t input_stride = 0;  // elements from row to row
  int64_t input_step = 1;    // and from column to column; other than 1 (planes) not with dynamic
  // Each row on its own range, NaN left out: symmetric over [-high, high] where low < 0, else the range of
  // the row and 0 over [low, high].
  bool dynamic = false;
  float scale = 1.0f;           // unless dynamic
  int32_t zero_point = 0;       // unless dynamic
  int32_t low = 0, high = 255;  // low < 0: signed
  uint8_t* output = nullptr;
  int64_t output_stride = 0;    // bytes, >= columns; the bytes between are set to 0
  float* row_scale = nullptr;   // [rows] or null: Epilogue::row_scale
  int32_t* row_zero = nullptr;  // [rows] or null: Epilogue::row_zero (+ 128 included)
};

struct Depthwise {
  ConvShape shape;
  int64_t channels = 0;
  const int32_t* pairs = nullptr;       // pack_depthwise
  const int32_t* weight_sum = nullptr;  // [channels]
};

// weight [channels, taps] int8 -> pairs[(taps + 1) / 2][channels up to 16]: the weights of two taps as two
// int16 in one int32, ready for vpmaddwd. Sized and filled here, with the channels' weight sums.
void pack_depthwise(const int8_t* weight, int64_t channels, int64_t taps, std::vector<int32_t>& pairs,
                    std::vector<int32_t>& weight_sum);

struct Kernels {
  const char* name;
  Layout layout;
  void (*run)(const Tiles&, const Input&, const Epilogue&, const WorkPlan&, int64_t begin, int64_t end);
  // Output pixels [begin, end); the input as for run.
  void (*depthwise)(const Depthwise&, const Input&, const Epilogue&, int64_t begin, int64_t end);
  void (*quantize_rows)(const RowQuantizer&, int64_t begin, int64_t end);  // f32, f16 and bf16
  void (*shift_rows)(const RowQuantizer&, int64_t begin, int64_t end);     // the same for bytes: u8 and s8
};

const Kernels& kernels_scalar();
const Kernels& kernels_avx2();
const Kernels& kernels_avx_vnni();
const Kernels& kernels_avx512_vnni();
const Kernels& kernels_amx_int8();

// 64-byte aligned memory of the calling thread, valid until its next call.
uint8_t* thread_scratch(std::size_t size);

}  // namespace sparseq
