#include "rows.h"

namespace sparseq::network {

const Kernels& kernels(Isa isa) {
  switch (isa) {
#if defined(__x86_64__)
    case Isa::amx_int8:
    case Isa::avx512_vnni:
    case Isa::avx512: return kernels_avx512();
    case Isa::avx_vnni:
    case Isa::avx2: return kernels_avx2();
#else
    default:
#endif
    case Isa::scalar: break;
  }
  return kernels_scalar();
}

void map_bytes(const Map& map, uint8_t* table) {
  uint8_t every[256];
  for (int q = 0; q < 256; ++q) every[q] = static_cast<uint8_t>(q);
  Map of = map;
  of.x.data = every;
  of.y.data = table;
  of.x.channels = of.x.pixel = of.y.pixel = 256;
  of.bytes = nullptr;
  kernels_scalar().map(of, 0, 1);
}

}  // namespace sparseq::network
