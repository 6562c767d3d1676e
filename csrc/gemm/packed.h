// Weights as the micro-kernels read them: tiles made on load for one ISA from the canonical form.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <numeric>
#include <utility>
#include <vector>

namespace sparseq {

enum class WeightKind : int32_t { dense, sparse24 };

// The order in which an AVX2 chunk lists its blocks. vpmaddubsw adds two neighbouring u8 x s8 products in
// int16, so what may be added without saturating depends on the weights alone: 255 * 128 fits, 255 * 129
// does not. Each block is put in the fastest class that can never overflow, and exactness costs nothing
// at run time. What fits no other class is wide: the unsigned side is |w|, the signed one
//   y = x - 128 where w >= 0, 127 - x where w < 0  (x with its bits flipped by 0x80 or 0x7f),
// whose pairs never exceed 2 * 128 * 127 or, below, 2 * 128 * 128; and x w = |w| y + 128 w or + 127 w, a constant
// of the weights where the sums begin (`start`).
// ISAs with a four-way dot product (VNNI, scalar) put every block in the first class.
// Of a dense panel's two vectors the first or the second alone may be wide, the other one a pair.
enum BlockClass : int { kQuad, kPair, kWide, kWideFirst, kWideSecond, kClasses };

// winograd.h's kernel of an ISA.
struct WinogradLayout {
  int64_t group = 0;                // output channels of a work item; 0: there is no such kernel
  double direct = 0, direct24 = 0;  // what one pixel of a group costs without it, in products of a point of its tiles
};

struct Layout {
  int lanes = 8;          // output channels per vector
  int dense_vectors = 2;  // vectors per dense panel
  int dense_rows = 6;     // activation rows per dense tile
  int broad_vectors = 0;  // the same of panels of a whole work item (Tiling::broad); 0: there are none
  int broad_rows = 0;
  int sparse_rows = 8;      // and per 2:4 tile (one vector per panel)
  int group_vectors = 2;    // vectors per work item: a full cache line of float32 outputs
  bool classes = false;     // classify blocks (AVX2)
  int64_t tile_inputs = 0;  // a tap's blocks come in steps of equally many, of at most so many inputs; 0: in any number
  WinogradLayout winograd;
};

struct CacheSizes {
  std::size_t l1 = 32 * 1024;
  std::size_t l2 = 512 * 1024;
};

// Inputs per block: dense 2 steps of 4, 2:4 two steps that select 4 values each. A dense block that is not kQuad
// is listed as two blocks of one step: few steps, then, are wide.
constexpr int kDenseBlock = 8;
constexpr int kSparseBlock = 16;

struct BlockRef {  // small: for few rows it is read once per 96 bytes of weights
  uint16_t tap;
  uint16_t quarter;  // first input channel of the block / 4
  uint64_t offset() const { return uint64_t{4} * quarter; }
};
constexpr int64_t kMaxTaps = 65535, kMaxInChannels = 4 * 65535;  // what a BlockRef can hold; packing throws beyond

// What a micro-kernel reads for one tile of rows and one chunk of one panel.
struct Operands {
  const uint8_t* const* rows;  // [taps][tile]
  int64_t tile;
  const uint8_t* row;  // of a single tap, for StridedRows: the first row, and bytes from each to the next
  int64_t pitch;
  const BlockRef* refs;
  const uint32_t* count;    // [kClasses]
  int64_t tap_inputs;       // in the blocks of a tap, which lie behind each other where there are no classes
  const uint8_t* weights;   // as stored
  const uint8_t* expanded;  // dense: the blocks of the classes from kWide on; 2:4: what expand_sparse made
  int64_t beside;           // from weights to those of the next panel, where both are taken together
  const int32_t* start;     // [panel width]: what the sums of a first chunk begin at; null: 0
  const uint8_t* next;      // weights that will be wanted soon, or null
  int64_t next_lines;       // of them, to be fetched with each block
};

struct Chunk {  // the part of one panel whose weights stay in L1, or near in L2, while the rows pass by
  std::size_t data = 0;
  uint32_t refs = 0;
  uint32_t count[kClasses] = {};
  uint32_t blocks() const { return std::accumulate(count, count + kClasses, uint32_t{0}); }
};

class AlignedBytes {
 public:
  AlignedBytes() = default;
  explicit AlignedBytes(std::size_t size) : size_(size) {
    if (size == 0) return;
    data_ = static_cast<uint8_t*>(std::aligned_alloc(64, (size + 63) / 64 * 64));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  AlignedBytes(AlignedBytes&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  AlignedBytes& operator=(AlignedBytes&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  AlignedBytes(const AlignedBytes&) = delete;
  AlignedBytes& operator=(const AlignedBytes&) = delete;
  ~AlignedBytes() { std::free(data_); }
  uint8_t* data() { return data_; }
  const uint8_t* data() const { return data_; }
  std::size_t size() const { return size_; }
  void shrink(std::size_t size) { size_ = size; }  // to fewer bytes

 private:
  uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
};

// Row-major [groups * out_channels, taps, in_channels]: a linear layer has groups = taps = 1, a
// convolution is OHWI. out_channels and in_channels are those of one convolution group.
struct WeightShape {
  int64_t groups = 1;
  int64_t out_channels = 0;
  int64_t taps = 1;
  int64_t in_channels = 0;
};

// How a packed weight is cut up: all but its bytes.
struct Tiling {
  WeightKind kind = WeightKind::dense;
  Layout layout;
  WeightShape shape;
  int64_t panels = 0;        // per convolution group, padded to whole work items
  int64_t chunks = 0;        // per panel
  int64_t chunk_blocks = 0;  // most whole blocks in a chunk

  // Dense panels of more channels and fewer rows: fewer loads for as many products, where it adds no padding.
  bool broad() const {
    const auto padded = [&](int64_t width) { return (shape.out_channels + width - 1) / width * width; };
    return kind == WeightKind::dense && layout.broad_vectors > 0 &&
           padded(layout.broad_vectors * layout.lanes) == padded(layout.group_vectors * layout.lanes);
  }
  int panel_vectors() const {
    return broad() ? layout.broad_vectors : kind == WeightKind::dense ? layout.dense_vectors : 1;
  }
  int panel_width() const { return panel_vectors() * layout.lanes; }
  int group_width() const { return (broad() ? layout.broad_vectors : layout.group_vectors) * layout.lanes; }
  int tile_rows() const {
    return broad() ? layout.broad_rows : kind == WeightKind::dense ? layout.dense_rows : layout.sparse_rows;
  }
  int64_t block_bytes() const {  // 2:4 without classes: of two on average
    return (kind == WeightKind::dense ? kDenseBlock : layout.classes ? 12 : 10) * panel_width();
  }
  int64_t chunk_bytes() const {  // of all but a panel's last chunk
    if (kind == WeightKind::dense) return chunk_blocks * kDenseBlock * panel_width();
    return (layout.classes ? 12 * chunk_blocks : 8 * chunk_blocks + 4 * ((chunk_blocks + 1) / 2)) * panel_width();
  }
  int64_t tap_steps(int64_t block_inputs) const {  // with tile_inputs
    const int64_t most = std::max(layout.tile_inputs, block_inputs);
    return (shape.in_channels + most - 1) / most;
  }
  int64_t step_blocks(int64_t block_inputs) const {
    const int64_t steps = tap_steps(block_inputs), blocks = (shape.in_channels + block_inputs - 1) / block_inputs;
    return steps == 0 ? 0 : (blocks + steps - 1) / steps;
  }
  int64_t tap_blocks(int64_t block_inputs) const { return tap_steps(block_inputs) * step_blocks(block_inputs); }
  int64_t channel_groups() const { return panels * panel_width() / group_width(); }  // per conv group
};

struct PackedWeight : Tiling {  // as packing makes it
  std::vector<Chunk> chunk;     // [groups][panels][chunks]
  std::vector<BlockRef> refs;
  AlignedBytes data;
  std::vector<int32_t> weight_sum;  // [groups * out_channels], for the zero point
  std::vector<int32_t> start;       // [groups][panels][width] with classes, else empty
  int winograd_most = 0;            // outputs a side of winograd.h's largest tiles that are exact for it; 0: none are
  std::vector<uint8_t> winograd;    // 2:4 with classes: the weight once more, for these (winograd.h)
};

struct Tiles : Tiling {  // as kernels read it, wherever the bytes lie
  const Chunk* chunk = nullptr;
  const BlockRef* refs = nullptr;
  const uint8_t* data = nullptr;
  const int32_t* weight_sum = nullptr;
  const int32_t* start = nullptr;     // null without classes
  const uint8_t* winograd = nullptr;  // PackedWeight's, or null
  int winograd_most = 0;
  Tiles() = default;
  Tiles(const PackedWeight& p)  // a view
      : Tiling(p),
        chunk(p.chunk.data()),
        refs(p.refs.data()),
        data(p.data.data()),
        weight_sum(p.weight_sum.data()),
        start(p.start.empty() ? nullptr : p.start.data()),
        winograd(p.winograd.empty() ? nullptr : p.winograd.data()),
        winograd_most(p.winograd_most) {}
};

// weight: canonical int8, any values in [-128, 127].
PackedWeight pack_dense(const int8_t* weight, const WeightShape& shape, const Layout& layout, const CacheSizes& caches);

// values, indices: the canonical 2:4 form (sparse24/format.h), already validated.
PackedWeight pack_sparse24(const int8_t* values, const uint8_t* indices, const WeightShape& shape, const Layout& layout,
                           const CacheSizes& caches);

}  // namespace sparseq
