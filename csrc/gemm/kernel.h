// The loop nest around the micro-kernels, once for dense and 2:4, linear and convolution, on every ISA.
//
//   for each work item (row block: activations in L2; group of channels: one cache line of outputs)
//     for each chunk of inputs (weights of the group in L1 or L2; 2:4 positions expanded once)
//       for each tile of rows, for each panel: micro-kernel, accumulators in an int32 block
//     epilogue of some tiles after their last chunk
#pragma once
#include <cstdint>
#include <cstring>

#include "depthwise_kernel.h"
#include "epilogue_kernel.h"
#include "gemm.h"
#include "micro.h"
#include "row_pointers.h"
#include "rows_kernel.h"

namespace {

template <class Micro>
struct Driver {
  using Function = void (*)(const sparseq::Operands&, int32_t*, int64_t, bool);
  using Epilogue = EpilogueKernel<typename Micro::Float, false>;
  static constexpr int64_t kFinished = 8;  // tiles whose sums leave together, while they are in L1
  static constexpr bool kExpands = Micro::kExpandedBlock > 0;

  template <class Rows, int... R>
  static Function pick_dense(int rows, std::integer_sequence<int, R...>) {
    static constexpr Function table[] = {Micro::template dense<R + 1, Rows>...};
    return table[rows - 1];
  }
  template <class Rows, int... R>
  static Function pick_sparse(int rows, std::integer_sequence<int, R...>) {
    static constexpr Function table[] = {Micro::template sparse<R + 1, Rows>...};
    return table[rows - 1];
  }
  template <int... R>
  static Function pick_broad(int rows, std::integer_sequence<int, R...>) {
    static constexpr Function table[] = {Micro::template broad<R + 1>...};
    return table[rows - 1];
  }
  template <int... R>
  static Function pick_stored(int rows, std::integer_sequence<int, R...>) {
    static constexpr Function table[] = {Micro::template sparse<R + 1, TapRows, true>...};
    return table[rows - 1];
  }
  template <class Rows>
  static Function pick(bool dense, int rows) {
    constexpr bool kStrided = std::is_same_v<Rows, StridedRows>;
    return dense ? pick_dense<Rows>(rows, std::make_integer_sequence<int, Micro::kDenseRows>{})
                 : pick_sparse<Rows>(
                       rows, std::make_integer_sequence<int, kStrided ? Micro::kStridedRows : Micro::kSparseRows>{});
  }

  // How a call reads its weights and rows.
  struct Reading {
    bool dense, broad;
    bool stored;       // 2:4 blocks, as they lie in memory
    bool strided;      // rows at equal distances
    int64_t together;  // panels that a micro-kernel takes

    Reading(const sparseq::Tiles& w, const sparseq::Input& input, int64_t rows)
        : dense(w.kind == sparseq::WeightKind::dense),
          broad(w.broad()),
          stored(!dense && (!kExpands || rows <= Micro::kStoredRows)),
          strided(Micro::kStrided && (Micro::kStridedDense || !dense) && !stored && input.conv == nullptr),
          together(dense || stored ? 1 : Micro::kSparsePanels) {}

    int most_rows(const sparseq::Tiles& w) const {
      if (strided && !dense) return Micro::kStridedRows;
      return kExpands && stored ? Micro::kStoredRows : w.tile_rows();
    }
    Function pick(int rows) const {
      if constexpr (Micro::kBroadRows > 0) {
        if (broad) return pick_broad(rows, std::make_integer_sequence<int, Micro::kBroadRows>{});
      }
      if constexpr (kExpands) {
        if (stored) return pick_stored(rows, std::make_integer_sequence<int, Micro::kStoredRows>{});
      }
      if constexpr (Micro::kStrided) {
        if (strided) return Driver::pick<StridedRows>(dense, rows);
      }
      return Driver::pick<TapRows>(dense, rows);
    }

    // Of a panel.
    int64_t expanded_bytes(const sparseq::Tiles& w) const {
      return dense ? 2 * Micro::kWideStep * w.chunk_blocks : stored ? 0 : Micro::kExpandedBlock * w.chunk_blocks;
    }
    // Tells the micro-kernel where the chunk of panel p is: as stored, and what is expanded for it.
    void prepare(const sparseq::Tiles& w, const sparseq::Chunk& chunk, int64_t p, uint8_t* scratch,
                 sparseq::Operands& o) const {
      const uint8_t* data = w.data + chunk.data;
      uint8_t* to = scratch + p / together * together * expanded_bytes(w);
      o.refs = w.refs + chunk.refs, o.count = chunk.count;
      o.weights = data, o.expanded = to;
      if (dense) {
        const int64_t step = 4 * w.panel_width();
        Micro::expand_dense(data + (2 * chunk.count[sparseq::kQuad] + chunk.count[sparseq::kPair]) * step, to,
                            chunk.count);
      } else if constexpr (kExpands) {
        if (!stored)
          Micro::expand_sparse(data, to + p % together * Micro::kExpandedBlock, chunk.blocks(),
                               together * Micro::kExpandedBlock);
      }
    }
  };

  // Which weights a chunk's tiles should prefetch while they multiply. Its only tile looks ahead of itself, where it
  // reads memory; else the tiles share the lines of the panels' next chunk, as many per block as it takes.
  class LookAhead {
   public:
    LookAhead() = default;
    // of_panel: the chunks of the panels that are taken together.
    LookAhead(const sparseq::Tiles& w, const sparseq::Chunk* const* of_panel, const Reading& reading, int64_t chunks_on,
              int64_t tiles)
        : data_(w.data + chunks_on * w.chunk_bytes()),
          of_panel_(of_panel),
          panels_(reading.together),
          lines_((w.block_bytes() + 63) / 64),
          alone_(tiles == 1 && (reading.dense || reading.stored)) {
      const int64_t turns = tiles < panels_ ? 1 : tiles / panels_;
      step_ = alone_ ? lines_ : (lines_ + turns - 1) / turns, turns_ = turns;
    }
    // Before each tile.
    void next(sparseq::Operands& o) {
      o.next = alone_ ? o.weights + 2048 : nullptr, o.next_lines = step_;
      if (alone_ || panel_ == panels_) return;
      if (line_ < lines_) o.next = data_ + of_panel_[panel_]->data + line_ * 64 * of_panel_[panel_]->blocks();
      line_ += step_;
      if (++turn_ == turns_) turn_ = line_ = 0, ++panel_;
    }

   private:
    const uint8_t* data_ = nullptr;
    const sparseq::Chunk* const* of_panel_ = nullptr;
    int64_t panels_ = 0, lines_ = 0, turns_ = 1, step_ = 0;
    bool alone_ = false;
    int64_t turn_ = 0, line_ = 0, panel_ = 0;
  };

  static void run(const sparseq::Tiles& w, const sparseq::Input& input, const sparseq::Epilogue& epilogue,
                  const sparseq::WorkPlan& plan, int64_t begin, int64_t end) {
    if (begin >= end) return;
    if constexpr (!std::is_void_v<typename Micro::Winograd>) {
      if (plan.winograd) return Micro::Winograd::run(w, input, epilogue, plan, begin, end);
    }
    const Reading reading(w, input, plan.rows);
    const int most = reading.most_rows(w), width = w.group_width(), panel_width = w.panel_width();
    const int64_t taps = w.shape.taps, channel_groups = w.channel_groups();
    const int64_t panels = width / panel_width, expanded = panels * reading.expanded_bytes(w);
    const int64_t block_inputs = reading.dense ? sparseq::kDenseBlock : sparseq::kSparseBlock;
    const int64_t acc_bytes = (w.chunks > 1 ? plan.row_block : smaller(plan.row_block, kFinished * most)) * width * 4;
    const int64_t table_bytes = (plan.row_block * taps + RowPointers::kSlack) * static_cast<int64_t>(sizeof(uint8_t*));
    uint8_t* scratch = sparseq::thread_scratch(static_cast<std::size_t>(expanded + acc_bytes + table_bytes));
    auto* acc = reinterpret_cast<int32_t*>(scratch + expanded);
    auto* table = reinterpret_cast<const uint8_t**>(scratch + expanded + acc_bytes);
    int64_t pointers_of = -1;

    for (int64_t item = begin; item < end; ++item) {
      const int64_t channel_group = item % channel_groups, block = item / channel_groups;
      const int64_t group = block % w.shape.groups;
      const int64_t row0 = plan.start + block / w.shape.groups * plan.row_block;
      const int64_t rows = smaller(plan.row_block, plan.rows - row0);
      const int64_t tiles = (rows + most - 1) / most;  // of equal height, so that the last is not a stub
      const int tile = static_cast<int>((rows + tiles - 1) / tiles);
      const int64_t first_input = group * w.shape.in_channels;
      if (!reading.strided && block != pointers_of) {
        RowPointers::build(input, first_input, taps, tile, row0, rows, table);
        pointers_of = block;
      }
      const int64_t channel = channel_group * width;  // within the convolution group
      const Epilogue finish(epilogue, w.weight_sum, group * w.shape.out_channels + channel,
                            smaller(width, w.shape.out_channels - channel));
      alignas(64) int32_t start[Epilogue::kMaxWidth] = {};
      const int64_t first_panel = group * w.panels + channel_group * panels;
      const bool started = finish.starts(start, w.start == nullptr ? nullptr : w.start + first_panel * panel_width);
      const sparseq::Chunk* chunks = w.chunk + first_panel * w.chunks;
      for (int64_t c = 0; c < w.chunks; ++c) {
        sparseq::Operands operands[Micro::kGroupVectors];
        const sparseq::Chunk* of_panel[Micro::kGroupVectors];
        for (int64_t p = 0; p < panels; ++p) {
          const sparseq::Chunk& chunk = chunks[p * w.chunks + c];
          of_panel[p] = &chunk;
          sparseq::Operands& o = operands[p];
          o.tile = tile, o.pitch = input.stride;
          o.tap_inputs = block_inputs * w.tap_blocks(block_inputs);
          o.start = started ? start + p * panel_width : nullptr;
          if (p > 0) operands[p - 1].beside = static_cast<int64_t>(chunk.data - of_panel[p - 1]->data);
          reading.prepare(w, chunk, p, scratch, o);
        }
        // A panel's chunks lie one behind the other; after the last come the work item's other panels.
        const int64_t chunks_on = c + 1 < w.chunks ? 1 : 1 + (panels - 1) * w.chunks;
        Function micro = reading.pick(static_cast<int>(smaller(tile, rows)));
        LookAhead ahead[Micro::kGroupVectors];
        for (int64_t p = 0; p < panels; p += reading.together)
          ahead[p] = LookAhead(w, of_panel + p, reading, chunks_on, tiles);
        for (int64_t t = 0; t < tiles; ++t) {
          const int64_t first = t * tile, some = smaller(tile, rows - first);
          if (some < tile) micro = reading.pick(static_cast<int>(some));
          if (c + 1 == w.chunks) finish.fetch(row0 + first, some);
          const int64_t from = t / kFinished * kFinished * tile;
          int32_t* sums = acc + (w.chunks > 1 ? from * width : 0);
          for (int64_t p = 0; p < panels; p += reading.together) {
            sparseq::Operands& o = operands[p];
            o.rows = table + first * taps;
            o.row = input.data + (row0 + first) * input.stride + first_input;
            ahead[p].next(o);
            micro(o, sums + (first - from) * width + p * panel_width, width, c == 0);
          }
          if (c + 1 < w.chunks || (t % kFinished != kFinished - 1 && t + 1 < tiles)) continue;
          finish.rows(sums, width, row0 + from, first + some - from);
        }
      }
    }
  }

  static sparseq::Kernels kernels(const char* name) {
    sparseq::Layout layout;
    layout.lanes = Micro::kLanes;
    layout.dense_vectors = Micro::kDenseVectors;
    layout.dense_rows = Micro::kDenseRows;
    layout.broad_vectors = Micro::kBroadVectors;
    layout.broad_rows = Micro::kBroadRows;
    layout.sparse_rows = Micro::kSparseRows;
    layout.group_vectors = Micro::kGroupVectors;
    layout.classes = Micro::kClassified;
    if constexpr (!std::is_void_v<typename Micro::Winograd>) layout.winograd = Micro::Winograd::kLayout;
    using Rows = RowsKernel<typename Micro::Float>;
    return {name,           layout,     run, DepthwiseKernel<typename Micro::Float, typename Micro::Columns>::run,
            Rows::quantize, Rows::shift};
  }
};

}  // namespace
