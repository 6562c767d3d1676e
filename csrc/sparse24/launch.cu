#include "compress.cuh"

namespace sparseq::cuda {
namespace {

unsigned blocks_for(int64_t threads) { return unsigned((threads + kGroupThreads - 1) / kGroupThreads); }

}  // namespace

Fault24 fault_of(uint64_t word, const Shape24& shape) {
  if (word == kNoFault) return {};
  const auto place = int64_t(word / 4), each = groups_24(shape.columns) + 1;
  return {Format24(word % 4), place / each, place % each};
}

template <class T>
void mask_24(const T* weight, T infinity, uint8_t* mask, const Shape24& shape, cudaStream_t stream) {
  const int64_t groups = shape.rows() * groups_24(shape.columns);
  if (groups == 0) return;
  mask_groups<<<blocks_for(groups), kGroupThreads, 0, stream>>>(weight, infinity, mask, GroupShape(shape));
}

template <class T>
void pack_24(const T* weight, const Shape24& shape, T* values, uint8_t* indices, uint64_t* fault, cudaStream_t stream) {
  const int64_t bytes = index_bytes_24(shape.columns);
  if (shape.rows() * bytes == 0) return;
  pack_groups<<<blocks_for(shape.rows() * bytes), kGroupThreads, 0, stream>>>(weight, GroupShape(shape), Divider(bytes),
                                                                              values, indices, fault);
}

template <class T>
void unpack_24(const T* values, const uint8_t* indices, const Shape24& shape, T* weight, uint64_t* fault,
               cudaStream_t stream) {
  const int64_t bytes = index_bytes_24(shape.columns);
  if (shape.rows() * bytes == 0) return;
  unpack_groups<<<blocks_for(shape.rows() * bytes), kGroupThreads, 0, stream>>>(values, indices, GroupShape(shape),
                                                                                Divider(bytes), weight, fault);
}

template void mask_24(const uint16_t*, uint16_t, uint8_t*, const Shape24&, cudaStream_t);
template void mask_24(const uint32_t*, uint32_t, uint8_t*, const Shape24&, cudaStream_t);
template void pack_24(const int8_t*, const Shape24&, int8_t*, uint8_t*, uint64_t*, cudaStream_t);
template void pack_24(const uint16_t*, const Shape24&, uint16_t*, uint8_t*, uint64_t*, cudaStream_t);
template void pack_24(const uint32_t*, const Shape24&, uint32_t*, uint8_t*, uint64_t*, cudaStream_t);
template void unpack_24(const int8_t*, const uint8_t*, const Shape24&, int8_t*, uint64_t*, cudaStream_t);
template void unpack_24(const uint16_t*, const uint8_t*, const Shape24&, uint16_t*, uint64_t*, cudaStream_t);
template void unpack_24(const uint32_t*, const uint8_t*, const Shape24&, uint32_t*, uint64_t*, cudaStream_t);

}  // namespace sparseq::cuda
