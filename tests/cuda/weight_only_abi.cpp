// The launchers of the weight-only products with a C interface, for tests that call them through ctypes. Nothing is
// decided here.
#include "../../csrc/weight_only/launch.h"

using namespace sparseq;
using namespace sparseq::weight_only;

extern "C" {

struct Rows {
  int64_t type;
  const void* x;
  int64_t count, depth, outputs;
  const float* bias;
  void* y;
};

static cuda::Linear linear_of(const Rows& r) {
  return {r.x, Element(r.type), r.count, r.depth, r.outputs, r.bias, r.y};
}

void int4_linear(const Rows* rows, const void* packed, const float* scale, const int32_t* zero, int64_t groups,
                 int is_signed) {
  cuda::int4_linear(linear_of(*rows), {static_cast<const uint8_t*>(packed), scale, zero, groups, is_signed != 0},
                    nullptr);
}
void linear_24(const Rows* rows, int type, const void* values, const void* indices) {
  cuda::linear_24(linear_of(*rows), {values, Element(type), static_cast<const uint8_t*>(indices)}, nullptr);
}
}
