// histogram's launcher with a C interface, for tests that call it through ctypes. Nothing is decided here.
#include "../../csrc/affine/launch.h"

using namespace sparseq::affine;

extern "C" void histogram(int type, int64_t outer, int64_t channels, int64_t inner, const void* x, const float* limit,
                          int64_t bins, int64_t counted, int64_t* counts) {
  cuda::histogram(DType(type), {outer, channels, inner}, x, limit, bins, counted, counts, nullptr);
}
