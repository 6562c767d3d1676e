// The 2:4 launchers with a C interface, for tests that call them through ctypes. Elements by their size; nothing is
// decided here.
#include "../../csrc/sparse24/launch.h"

using namespace sparseq;

template <class F>
static void by_size(int size, F f) {
  if (size == 1) return f(int8_t{});
  if (size == 2) return f(uint16_t{});
  f(uint32_t{});
}

extern "C" {

void mask_24(int size, const void* weight, uint32_t infinity, void* mask, int64_t outputs, int64_t columns,
             int64_t taps) {
  const Shape24 shape{outputs, columns, taps};
  if (size == 2)
    cuda::mask_24(static_cast<const uint16_t*>(weight), uint16_t(infinity), static_cast<uint8_t*>(mask), shape,
                  nullptr);
  else
    cuda::mask_24(static_cast<const uint32_t*>(weight), infinity, static_cast<uint8_t*>(mask), shape, nullptr);
}
void pack_24(int size, const void* weight, void* values, void* indices, uint64_t* fault, int64_t outputs,
             int64_t columns, int64_t taps) {
  by_size(size, [&]<class T>(T) {
    cuda::pack_24(static_cast<const T*>(weight), {outputs, columns, taps}, static_cast<T*>(values),
                  static_cast<uint8_t*>(indices), fault, nullptr);
  });
}
void unpack_24(int size, const void* values, const void* indices, void* weight, uint64_t* fault, int64_t outputs,
               int64_t columns, int64_t taps) {
  by_size(size, [&]<class T>(T) {
    cuda::unpack_24(static_cast<const T*>(values), static_cast<const uint8_t*>(indices), {outputs, columns, taps},
                    static_cast<T*>(weight), fault, nullptr);
  });
}
// error * 2^56 + row * 2^28 + group
int64_t fault_of(uint64_t word, int64_t columns) {
  const Fault24 fault = cuda::fault_of(word, {0, columns, 1});
  return int64_t(fault.error) << 56 | fault.row << 28 | fault.group;
}
}
