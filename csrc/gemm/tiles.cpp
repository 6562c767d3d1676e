#include "tiles.h"

#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <stdexcept>

#include "../sparse24/format.h"
#include "winograd.h"

namespace sparseq::gemm {
namespace {

int64_t aligned(int64_t size) { return (size + 63) / 64 * 64; }

// The arrays behind each other; returns where the next one starts.
template <class T>
int64_t place(int64_t at, const T* from, int64_t count, std::vector<uint8_t>& bytes) {
  const int64_t size = count * int64_t(sizeof(T));
  bytes.resize(size_t(at + aligned(size)));
  if (size) std::memcpy(bytes.data() + at, from, size_t(size));
  return at + aligned(size);
}

// FNV-1a by words: any changed byte changes it, and a call can afford it. What does not fill a word is left out.
uint64_t hash_of(const void* data, size_t size) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  uint64_t sum = 0xcbf29ce484222325;
  for (size_t at = 0; at + sizeof(uint64_t) <= size; at += sizeof(uint64_t)) {
    uint64_t word;
    std::memcpy(&word, bytes + at, sizeof word);
    sum = (sum ^ word) * 0x100000001b3;
  }
  return sum;
}

uint64_t checksum(const TileHeader& header) {
  static_assert(offsetof(TileHeader, checksum) % sizeof(uint64_t) == 0);
  return hash_of(&header, offsetof(TileHeader, checksum));
}

uint64_t content_of(const int8_t* weight, int64_t count) {
  const auto whole = size_t(count) / sizeof(uint64_t) * sizeof(uint64_t);
  uint64_t rest = 0;
  if (whole < size_t(count)) std::memcpy(&rest, weight + whole, size_t(count) - whole);
  const uint64_t both[] = {hash_of(weight, whole), rest};
  return hash_of(both, sizeof both);
}

AlignedBytes finish(TileHeader header, std::vector<uint8_t> bytes) {
  // a micro-kernel's last loads and prefetches may look a little past the weights
  bytes.resize(bytes.size() + 128);
  header.size = int64_t(bytes.size());
  header.checksum = checksum(header);
  std::memcpy(bytes.data(), &header, sizeof header);
  AlignedBytes result(bytes.size());  // kernels load whole vectors
  std::memcpy(result.data(), bytes.data(), bytes.size());
  return result;
}

AlignedBytes flatten(const PackedWeight& packed, TileHeader header) {
  header.panels = packed.panels, header.chunks = packed.chunks, header.chunk_blocks = packed.chunk_blocks;
  header.winograd_most = packed.winograd_most;
  std::vector<uint8_t> bytes;
  header.sums_at = aligned(sizeof header);
  header.start_at = place(header.sums_at, packed.weight_sum.data(), int64_t(packed.weight_sum.size()), bytes);
  header.winograd_at = place(header.start_at, packed.start.data(), int64_t(packed.start.size()), bytes);
  header.chunks_at = place(header.winograd_at, packed.winograd.data(), int64_t(packed.winograd.size()), bytes);
  header.refs_at = place(header.chunks_at, packed.chunk.data(), int64_t(packed.chunk.size()), bytes);
  header.data_at = place(header.refs_at, packed.refs.data(), int64_t(packed.refs.size()), bytes);
  place(header.data_at, packed.data.data(), int64_t(packed.data.size()), bytes);
  return finish(header, std::move(bytes));
}

}  // namespace

const Kernels& kernels(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::amx_int8: return kernels_amx_int8();
    case Isa::avx512_vnni: return kernels_avx512_vnni();
    case Isa::avx_vnni: return kernels_avx_vnni();
    case Isa::avx512:
    case Isa::avx2: return kernels_avx2();
    case Isa::scalar: break;
  }
#endif
  return kernels_scalar();
}

CacheSizes cache_sizes() {
  static const CacheSizes sizes = [] {
    CacheSizes found;  // the defaults stand where the system does not say
    const long l1 = sysconf(_SC_LEVEL1_DCACHE_SIZE), l2 = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (l1 > 0) found.l1 = size_t(l1);
    if (l2 > 0) found.l2 = size_t(l2);
    return found;
  }();
  return sizes;
}

AlignedBytes make_tiles(const int8_t* weight, const WeightShape& shape, Isa isa, std::optional<TileKind> wanted) {
  TileHeader header{};
  header.magic = kMagic, header.isa = isa, header.shape = shape;
  header.content = content_of(weight, shape.groups * shape.out_channels * shape.taps * shape.in_channels);
  const auto dense = [&] {
    header.kind = TileKind::dense;
    auto packed = pack_dense(weight, shape, kernels(isa).layout, cache_sizes());
    winograd::keep(weight, packed);
    return flatten(packed, header);
  };
  if (shape.groups > 1 && shape.out_channels == 1 && shape.in_channels == 1) {
    std::vector<int32_t> pairs, sums;
    pack_depthwise(weight, shape.groups, shape.taps, pairs, sums);
    header.kind = TileKind::depthwise;
    std::vector<uint8_t> bytes;
    header.sums_at = aligned(sizeof header);
    header.data_at = place(header.sums_at, sums.data(), int64_t(sums.size()), bytes);
    place(header.data_at, pairs.data(), int64_t(pairs.size()), bytes);
    return finish(header, std::move(bytes));
  }
  if (wanted == TileKind::dense) return dense();
  const int64_t rows = shape.groups * shape.out_channels * shape.taps;
  std::vector<int8_t> values(size_t(rows * values_24(shape.in_channels)));
  std::vector<uint8_t> indices(size_t(rows * index_bytes_24(shape.in_channels)));
  const bool sparse =
      shape.in_channels >= 4 && pack_24(weight, {rows, shape.in_channels}, values.data(), indices.data(), 0, rows).ok();
  if (sparse) {
    header.kind = TileKind::sparse24;
    auto packed = pack_sparse24(values.data(), indices.data(), shape, kernels(isa).layout, cache_sizes());
    winograd::keep(weight, packed);
    return flatten(packed, header);
  }
  if (wanted == TileKind::sparse24)
    throw std::invalid_argument("weight must hold at most 2 non-zeros in every 4 neighbouring inputs, and 4 inputs");
  return dense();
}

TileHeader read_header(const uint8_t* bytes, int64_t size, const WeightShape& shape) {
  TileHeader header{};
  if (size >= int64_t(sizeof header)) std::memcpy(&header, bytes, sizeof header);
  if (header.magic != kMagic || header.checksum != checksum(header) || header.size != size ||
      std::memcmp(&header.shape, &shape, sizeof shape) != 0)
    throw std::invalid_argument("tiles must be made by int8_tiles for this weight");
  return header;
}

bool readable(const TileHeader& header, const uint8_t* bytes, Isa isa) {
  return header.isa == isa && reinterpret_cast<uintptr_t>(bytes) % 64 == 0;
}

TiledWeight view_tiles(const uint8_t* bytes, int64_t size, const WeightShape& shape) {
  read_header(bytes, size, shape);
  const auto* header = reinterpret_cast<const TileHeader*>(bytes);
  TiledWeight view{header, {}, reinterpret_cast<const int32_t*>(bytes + header->sums_at), nullptr};
  if (header->kind == TileKind::depthwise) {
    view.pairs = reinterpret_cast<const int32_t*>(bytes + header->data_at);
    return view;
  }
  Tiles& tiles = view.tiles;
  tiles.kind = header->kind == TileKind::dense ? WeightKind::dense : WeightKind::sparse24;
  tiles.layout = kernels(header->isa).layout;
  tiles.shape = shape;
  tiles.panels = header->panels, tiles.chunks = header->chunks, tiles.chunk_blocks = header->chunk_blocks;
  tiles.weight_sum = view.sums;
  if (header->winograd_at != header->chunks_at) tiles.winograd = bytes + header->winograd_at;
  tiles.winograd_most = header->winograd_most;
  if (tiles.layout.classes) tiles.start = reinterpret_cast<const int32_t*>(bytes + header->start_at);
  tiles.chunk = reinterpret_cast<const Chunk*>(bytes + header->chunks_at);
  tiles.refs = reinterpret_cast<const BlockRef*>(bytes + header->refs_at);
  tiles.data = bytes + header->data_at;
  return view;
}

}  // namespace sparseq::gemm
