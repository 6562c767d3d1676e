// The affine launchers with a C interface, for tests that call them through ctypes. Nothing is decided here.
#include "../../csrc/affine/launch.h"

using namespace sparseq::affine;

extern "C" {

// Flat arguments of a Problem, in this order everywhere.
struct Scheme {
  int64_t outer, channels, inner;
  const float* scale;
  const void* zero_point;
  int zero_point_kind;
  float quant_min, quant_max;
};

static Problem problem_of(const Scheme& s) {
  return {{s.outer, s.channels, s.inner},   s.scale,     s.zero_point,
          ZeroPointKind(s.zero_point_kind), s.quant_min, s.quant_max};
}

int64_t slots(const Scheme* s) { return cuda::Cut(problem_of(*s).layout).slots; }
int by_columns(const Scheme* s) { return cuda::Cut(problem_of(*s).layout).by_columns; }

void quantize(int type, const Scheme* s, const void* x, void* q) {
  cuda::quantize(DType(type), problem_of(*s), x, static_cast<uint8_t*>(q), nullptr);
}
void dequantize(int type, int is_signed, const Scheme* s, const void* q, void* y) {
  cuda::dequantize(DType(type), is_signed != 0, problem_of(*s), q, y, nullptr);
}
void fake_quantize(int type, const Scheme* s, const void* x, void* y) {
  cuda::fake_quantize(DType(type), problem_of(*s), x, y, nullptr);
}
void backward(int type, const Scheme* s, const void* grad, const void* x, void* grad_x) {
  cuda::backward(DType(type), problem_of(*s), grad, x, grad_x, nullptr);
}
void learned_backward(int type, const Scheme* s, const void* grad, const void* x, void* grad_x, double grad_factor,
                      void* partials, int64_t channels, float* grad_scale, float* grad_zero) {
  const Problem problem = problem_of(*s);
  cuda::learned_backward(DType(type), problem, cuda::Cut(problem.layout), grad, x, grad_x, grad_factor,
                         static_cast<Pair*>(partials), channels, grad_scale, grad_zero, nullptr);
}
void minmax(int type, const Scheme* s, const void* x, void* partials, float* low, float* high) {
  cuda::minmax(DType(type), cuda::Cut(problem_of(*s).layout), x, static_cast<Pair*>(partials), low, high, nullptr);
}
void observed(int type, const Scheme* s, const void* x, void* y, void* partials, float* low, float* high) {
  const Problem problem = problem_of(*s);
  cuda::observed(DType(type), problem, cuda::Cut(problem.layout), x, y, static_cast<Pair*>(partials), low, high,
                 nullptr);
}
void pack_int4(const void* q, void* packed, int64_t rows, int64_t columns) {
  cuda::pack_int4(static_cast<const uint8_t*>(q), static_cast<uint8_t*>(packed), rows, columns, nullptr);
}
void unpack_int4(const void* packed, void* q, int64_t rows, int64_t columns, int is_signed) {
  cuda::unpack_int4(static_cast<const uint8_t*>(packed), static_cast<uint8_t*>(q), rows, columns, is_signed != 0,
                    nullptr);
}
}
