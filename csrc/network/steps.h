// What a plan does, one step after the other: calls of kernels, with the addresses of a running call. No torch.
//
//   bind(call)        once for a call, on one thread: addresses, and what hangs on the constants' bytes
//   share             how the work is divided; of convolutions known after bind
//   run(begin, end)   items, on any thread
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <utility>
#include <variant>
#include <vector>

#include "../gemm/runs.h"
#include "../gemm/tiles_for.h"
#include "layout.h"
#include "rows.h"
#include "team.h"

namespace sparseq::network {

struct Call {
  const std::vector<uint8_t*>& bases;  // of Place
  const std::vector<const void*>& constants;

  uint8_t* at(const Place& place) const { return bases[size_t(place.base)] + place.offset; }
  const float* floats(int32_t constant) const {
    return constant < 0 ? nullptr : static_cast<const float*>(constants[size_t(constant)]);
  }
};

// An input's floats, copied from any strides to pixels of channels.
struct LoadStep {
  Place x, y;
  gemm::Runs runs;
  int64_t channels, plane;
  Share share;
  const float* from = nullptr;
  float* to = nullptr;

  LoadStep(const gemm::Pixels& pixels, Place x, Place y, int64_t threads);
  void bind(const Call& call);
  void run(int64_t begin, int64_t end) const;

 private:
  static constexpr int64_t kBlock = 64;  // pixels
  int64_t blocks;
};

struct QuantiseStep {
  Place x, y;
  gemm::Conversion conversion;
  const sparseq::Kernels* kernels;
  Share share;

  void bind(const Call& call);
  void run(int64_t begin, int64_t end) const { conversion.run(*kernels, begin, end); }
};

struct MapStep {
  Place x, y;
  Map map;
  int32_t scale = -1, shift = -1;  // constants
  std::shared_ptr<const std::array<uint8_t, 256>> bytes;
  const Kernels* kernels = nullptr;
  Share share;

  void prepare();  // bytes, where they serve
  void bind(const Call& call);
  void run(int64_t begin, int64_t end) const { kernels->map(map, begin, end); }
};

// Lines with real 0 around them. Without a copy the lines are there already.
struct PadStep {
  MapStep line;  // of one line of x
  int64_t lines, width, above, before, x_width, x_height;
  int64_t element;
  bool copy;
  Share share;

  void bind(const Call& call) { line.bind(call); }
  void run(int64_t begin, int64_t end) const;

 private:
  void fill(uint8_t* to, int64_t pixels) const;
};

struct BinaryStep {
  Place a, b, y;
  Binary binary;
  const Kernels* kernels;
  Share share;

  void bind(const Call& call);
  void run(int64_t begin, int64_t end) const { kernels->binary(binary, begin, end); }
};

struct PoolStep {
  Place x, y;
  Pool pool;
  int64_t blocks;  // of kChannels: few pixels are shared by their channels
  const Kernels* kernels;
  Share share;

  static constexpr int64_t kChannels = 64;
  void bind(const Call& call);
  void run(int64_t begin, int64_t end) const;
};

struct NormStep {
  Place x, y;
  LayerNorm norm;
  int32_t weight = -1, bias = -1;  // constants
  const Kernels* kernels;
  Share share;

  void bind(const Call& call);
  void run(int64_t begin, int64_t end) const { kernels->layer_norm(norm, begin, end); }
};

struct AttentionStep {
  std::array<Place, 3> inputs;  // q, k, v: where their channels begin
  Place y;
  Attention attention;
  const Kernels* kernels;
  Share share;

  void bind(const Call& call);
  void run(int64_t begin, int64_t end) const;
};

struct ConvStep {
  Place x, residual, y;
  WeightShape shape;
  ConvShape conv;
  bool pointwise = false;  // output pixel m reads input pixel m
  Input input;             // but for its data
  Epilogue epilogue;       // but for its addresses
  std::array<int32_t, 4> constants{-1, -1, -1, -1};
  int64_t tiles_bytes = 0;
  int64_t threads = 1;
  Isa isa = Isa::scalar;
  // None, or the one whose float32 outputs, of the same shape, are the residual: it has no place, and is run for each
  // part of this one's outputs just before that part.
  std::vector<ConvStep> added;
  Share share;

  void bind(const Call& call);
  void run(int64_t begin, int64_t end) const;

 private:
  void divide();
  double nanoseconds() const;
  void add_and_run(int64_t begin, int64_t end) const;
  std::pair<int64_t, int64_t> rows_of(int64_t block) const;
  std::optional<gemm::TilesFor> tiles_;  // of the last call, which most calls' are
  const void* tiles_at_ = nullptr;
  gemm::TileHeader header_{};
  WorkPlan plan_;
  Depthwise depthwise_;
};

using Step =
    std::variant<LoadStep, QuantiseStep, MapStep, PadStep, BinaryStep, PoolStep, NormStep, AttentionStep, ConvStep>;

}  // namespace sparseq::network
