// The launchers of the products with a C interface, for tests that call them through ctypes. Nothing is decided here.
#include "../../csrc/gemm/launch.h"

using namespace sparseq;
using namespace sparseq::gemm;

extern "C" {

struct Weights {
  int32_t kind, element;
  int64_t groups, out_channels, taps, in_channels;
  void* tiles;
};

struct Images {  // ConvShape, in its order
  int64_t sizes[13];
};

struct Product {
  Weights weights;
  const void* x;
  int64_t x_signed, stride, count;
  const Images* images;
  const int32_t* padding;
  int64_t large, splits;
  void* workspace;
  const float *scale, *x_scale;
  const int32_t* x_zero;
  const float* row_scale;
  const int32_t* row_zero;
  const float* bias;
  int64_t activation, residual_type;
  const void* residual;
  int64_t residual_stride;
  const float* residual_scale;
  const int32_t* residual_zero;
  int64_t output_type;
  void* output;
  int64_t output_stride;
  const float* y_scale;
  const int32_t* y_zero;
  float output_low, output_high;
};

static cuda::CudaTiling tiling_of(const Weights& w) {
  return {TileKind(w.kind), w.element, {w.groups, w.out_channels, w.taps, w.in_channels}};
}
static cuda::Finish finish_of(const Product& p) {
  cuda::Finish f;
  f.scale = p.scale, f.x_scale = p.x_scale, f.x_zero = p.x_zero, f.row_scale = p.row_scale, f.row_zero = p.row_zero;
  f.bias = p.bias, f.activation = Activation(p.activation);
  f.residual_type = Element(p.residual_type), f.residual = p.residual, f.residual_stride = p.residual_stride;
  f.residual_scale = p.residual_scale, f.residual_zero = p.residual_zero;
  f.output_type = Element(p.output_type), f.output = p.output, f.output_stride = p.output_stride;
  f.y_scale = p.y_scale, f.y_zero = p.y_zero, f.output_low = p.output_low, f.output_high = p.output_high;
  return f;
}

struct Given {
  ConvShape shape;
  cuda::Rows rows;
  explicit Given(const Product& p) {
    if (p.images) {
      const int64_t* s = p.images->sizes;
      shape = {s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11], s[12]};
    }
    rows = {p.x, p.x_signed != 0, p.stride, p.count, p.images ? &shape : nullptr, p.padding};
  }
};

int64_t tiles_size(const Weights* w) { return tiling_of(*w).size; }
int64_t workspace_size(const Product* p) {
  return cuda::cut_into(tiling_of(p->weights), p->count, p->large != 0, p->splits).workspace;
}
// large, splits, as chosen
int64_t chosen(const Weights* w, int64_t rows, int multiprocessors, int64_t* splits) {
  const cuda::Cut cut = cuda::cut_product(tiling_of(*w), rows, multiprocessors);
  *splits = cut.splits;
  return cut.large;
}

void pack_tiles(const Weights* w, const void* weight) {
  cuda::pack_tiles(tiling_of(*w), static_cast<const int8_t*>(weight), static_cast<uint8_t*>(w->tiles), nullptr);
}
void pack_tiles_24(const Weights* w, const void* values, const void* indices) {
  cuda::pack_tiles_24(tiling_of(*w), values, static_cast<const uint8_t*>(indices), static_cast<uint8_t*>(w->tiles),
                      nullptr);
}

void int8_product(const Product* p) {
  const Given x(*p);
  const cuda::CudaTiling tiling = tiling_of(p->weights);
  cuda::int8_product(tiling, static_cast<const uint8_t*>(p->weights.tiles), x.rows, finish_of(*p),
                     cuda::cut_into(tiling, p->count, p->large != 0, p->splits), p->workspace, nullptr);
}
void float_product(const Product* p, int type) {
  const Given x(*p);
  const cuda::CudaTiling tiling = tiling_of(p->weights);
  cuda::float_product(Element(type), tiling, static_cast<const uint8_t*>(p->weights.tiles), x.rows, finish_of(*p),
                      cuda::cut_into(tiling, p->count, p->large != 0, p->splits), p->workspace, nullptr);
}
// weight [output][channel][tap], or packed as tiles of kind depthwise
void direct_product(const Product* p, const void* weight, int is_signed, const int32_t* zero) {
  const Given x(*p);
  const cuda::CudaTiling t = tiling_of(p->weights);
  cuda::PlainWeight plain{static_cast<const uint8_t*>(weight), is_signed != 0, {t.inputs(), 1, t.shape.taps}, zero};
  if (!weight) {
    plain.data = static_cast<const uint8_t*>(p->weights.tiles) + t.data_at;
    plain.strides[0] = 1, plain.strides[1] = t.shape.in_channels * t.outputs(), plain.strides[2] = t.outputs();
  }
  cuda::direct_product(t.shape, plain, x.rows, finish_of(*p), nullptr);
}

void quantize_rows(int type, const void* x, int64_t rows, int64_t columns, int64_t stride, int low, int high, void* q,
                   int64_t q_stride, float* scale, int32_t* zero) {
  cuda::quantize_rows(
      {x, Element(type), rows, columns, stride, low, high, static_cast<uint8_t*>(q), q_stride, scale, zero}, nullptr);
}
}
