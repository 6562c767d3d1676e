#include "steps.h"

#include <algorithm>
#include <cstring>

#include "../gemm/winograd.h"

namespace sparseq::network {

LoadStep::LoadStep(const gemm::Pixels& pixels, Place x_, Place y_, int64_t threads)
    : x(x_),
      y(y_),
      runs(pixels),
      channels(pixels.channels),
      plane(pixels.plane),
      blocks((runs.length + kBlock - 1) / kBlock) {
  share = network::share(runs.count * blocks, double(kBlock * channels), threads);
}

void LoadStep::bind(const Call& call) {
  from = reinterpret_cast<const float*>(call.at(x));
  to = reinterpret_cast<float*>(call.at(y));
}

void LoadStep::run(int64_t begin, int64_t end) const {
  for (int64_t item = begin; item < end; ++item) {
    const int64_t run = item / blocks, first = item % blocks * kBlock, rows = std::min(kBlock, runs.length - first);
    const float* source = from + runs.offset(run) + first * runs.stride;
    float* target = to + (run * runs.length + first) * channels;
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t row = 0; row < rows; ++row) target[row * channels + c] = source[row * runs.stride + c * plane];
  }
}

void QuantiseStep::bind(const Call& call) {
  conversion.whole.input = call.at(x);
  conversion.whole.output = call.at(y);
}

void MapStep::prepare() {
  if (map.x.type != Element::u8 || map.y.type != Element::u8 || scale >= 0) return;
  auto table = std::make_shared<std::array<uint8_t, 256>>();
  map_bytes(map, table->data());
  bytes = std::move(table);
  map.bytes = bytes->data();
}

void MapStep::bind(const Call& call) {
  map.x.data = call.at(x);
  map.y.data = call.at(y);
  map.scale = call.floats(scale);
  map.shift = call.floats(shift);
}

void PadStep::fill(uint8_t* to, int64_t pixels) const {
  const int value = element == 1 ? line.map.y.zero : 0;
  std::memset(to, value, size_t(pixels * line.map.y.pixel * element));
}

void PadStep::run(int64_t begin, int64_t end) const {
  const int64_t y_pixel = line.map.y.pixel * element;
  const int64_t x_line = x_width * line.map.x.pixel * (line.map.x.type == Element::u8 ? 1 : 4);
  for (int64_t item = begin; item < end; ++item) {
    auto* to = static_cast<uint8_t*>(line.map.y.data) + item * width * y_pixel;
    const int64_t image = item / lines, row = item % lines - above;
    if (row < 0 || row >= x_height) {
      fill(to, width);
      continue;
    }
    fill(to, before);
    fill(to + (before + x_width) * y_pixel, width - before - x_width);
    if (!copy) continue;
    Map of_line = line.map;
    of_line.x.data = static_cast<const uint8_t*>(line.map.x.data) + (image * x_height + row) * x_line;
    of_line.y.data = to + before * y_pixel;
    line.kernels->map(of_line, 0, x_width);
  }
}

void BinaryStep::bind(const Call& call) {
  binary.a.data = call.at(a);
  binary.b.data = call.at(b);
  binary.y.data = call.at(y);
}

void PoolStep::bind(const Call& call) {
  pool.x.data = call.at(x);
  pool.y.data = call.at(y);
}

void PoolStep::run(int64_t begin, int64_t end) const {
  const int64_t channels = pool.x.channels;
  if (blocks == 1) return kernels->pool(pool, begin, end, 0, channels);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t pixel = item / blocks, first = item % blocks * kChannels;
    kernels->pool(pool, pixel, pixel + 1, first, std::min(first + kChannels, channels));
  }
}

void NormStep::bind(const Call& call) {
  norm.x.data = call.at(x);
  norm.y.data = call.at(y);
  norm.weight = call.floats(weight);
  norm.bias = call.floats(bias);
}

void AttentionStep::bind(const Call& call) {
  attention.q.data = call.at(inputs[0]);
  attention.k.data = call.at(inputs[1]);
  attention.v.data = call.at(inputs[2]);
  attention.y.data = call.at(y);
}

void AttentionStep::run(int64_t begin, int64_t end) const {
  thread_local AlignedBytes workspace;
  const int64_t floats = (attention.depth + attention.k.height * attention.k.width) * Attention::kBlock;
  const auto size = size_t(floats) * sizeof(float);
  if (workspace.size() < size) workspace = AlignedBytes(size);
  kernels->attention(attention, begin, end, reinterpret_cast<float*>(workspace.data()));
}

void ConvStep::bind(const Call& call) {
  for (ConvStep& step : added) step.bind(call);
  const auto* bytes = static_cast<const uint8_t*>(call.constants[size_t(constants[1])]);
  if (!tiles_ || tiles_at_ != bytes || std::memcmp(&header_, bytes, sizeof header_) != 0) {
    tiles_.emplace(static_cast<const int8_t*>(call.constants[size_t(constants[0])]),
                   std::span(bytes, size_t(tiles_bytes)), shape, isa);
    tiles_at_ = bytes;
    std::memcpy(&header_, bytes, sizeof header_);
    divide();
  }
  input.data = call.at(x);
  input.conv = pointwise ? nullptr : &conv;
  epilogue.multiplier = call.floats(constants[2]);
  epilogue.bias = call.floats(constants[3]);
  epilogue.output = call.at(y);
  if (epilogue.residual_type != Element::none) epilogue.residual = call.at(residual);
}

void ConvStep::divide() {
  const gemm::TiledWeight& weight = **tiles_;
  const int64_t pixels = conv.batch * conv.out_height * conv.out_width;
  const int64_t outputs = shape.groups * shape.out_channels, depth = shape.taps * shape.in_channels;
  if (weight.header->kind == gemm::TileKind::depthwise) {
    depthwise_ = {conv, outputs, weight.pairs, weight.sums};
    constexpr int64_t tile = 16;  // pixels that the kernel takes together
    share = network::share((pixels + tile - 1) / tile, double(tile * outputs * (depth + 4)) / 16, threads);
    share.items = pixels, share.unit = tile;
    return;
  }
  plan_ = plan_work(weight.tiles, pointwise ? nullptr : &conv, pixels, gemm::cache_sizes(), int(threads));
  double all = nanoseconds();
  for (ConvStep& step : added) {
    if (plan_.amx == 0 && step.plan_.amx != 0)  // this one's blocks may begin anywhere in a line
      step.plan_ = plan_work((**step.tiles_).tiles, step.input.conv, pixels, gemm::cache_sizes(), int(threads), true);
    all += step.nanoseconds();
  }
  share = network::share(plan_.items, all / double(std::max<int64_t>(1, plan_.items)), threads);
  if (share.most == 1) return;
  const bool apart = plan_.winograd || plan_.amx;  // each claim transforms or copies its inputs
  if (apart || share.items >= plan_.claim * threads) share.unit = plan_.claim;
  if (apart) share.most = share.units();
}

double ConvStep::nanoseconds() const {
  const double outputs = double(conv.batch * conv.out_height * conv.out_width * shape.groups * shape.out_channels);
  return outputs * (double(shape.taps * shape.in_channels) / (plan_.amx ? 600 : 80) + 0.5);
}

void ConvStep::run(int64_t begin, int64_t end) const {
  const gemm::TiledWeight& weight = **tiles_;
  const sparseq::Kernels& kernel = gemm::kernels(isa);
  if (weight.header->kind == gemm::TileKind::depthwise)
    return kernel.depthwise(depthwise_, input, epilogue, begin, end);
  if (added.empty()) return kernel.run(weight.tiles, input, epilogue, plan_, begin, end);
  const int64_t of_block = plan_.items / plan_.row_blocks;
  for (int64_t stop; begin < end; begin = stop) {
    stop = std::min(end, (begin / of_block + 1) * of_block);
    add_and_run(begin, stop);
  }
}

// Items of one block.
void ConvStep::add_and_run(int64_t begin, int64_t end) const {
  const Tiles &tiles = (**tiles_).tiles, &of_added = (**added[0].tiles_).tiles;
  const int64_t of_block = plan_.items / plan_.row_blocks, block = begin / of_block, outputs = shape.out_channels;
  const int64_t width = plan_.winograd ? tiles.layout.winograd.group : tiles.group_width();
  // Whole groups of what is added, which may be wider.
  const int64_t group = of_added.group_width(), groups = of_added.channel_groups();
  const int64_t channel = begin % of_block * width / group * group;
  const int64_t channels =
      std::min(((begin % of_block + end - begin) * width + group - 1) / group * group, outputs) - channel;
  WorkPlan plan = added[0].plan_;
  auto [first, last] = rows_of(block);
  if (plan.amx && !added[0].pointwise) {  // whole lines
    first -= first % conv.out_width;
    last += (conv.out_width - last % conv.out_width) % conv.out_width;
  }

  thread_local AlignedBytes sums;
  const auto size = size_t((last - first) * channels) * sizeof(float);
  if (sums.size() < size) sums = AlignedBytes(size);
  Epilogue parted = added[0].epilogue, own = epilogue;
  // Where row 0 and channel 0 would be; kernels add theirs to it.
  parted.output = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(sums.data()) -
                                          sizeof(float) * uintptr_t(first * channels + channel));
  parted.output_stride = channels;
  own.residual = parted.output, own.residual_stride = channels;

  const sparseq::Kernels& kernel = gemm::kernels(isa);
  const auto run = [&](int64_t from, int64_t to) {
    plan.start = from, plan.rows = to;
    if (plan.amx) plan.amx = 1, plan.row_block = (to - from) / (added[0].pointwise ? 1 : conv.out_width);
    const int64_t blocks = plan.amx ? 1 : (to - from + plan.row_block - 1) / plan.row_block;
    for (int64_t at = 0; at < blocks; ++at)
      kernel.run(of_added, added[0].input, parted, plan, at * groups + channel / group,
                 at * groups + (channel + channels + group - 1) / group);
  };
  const int64_t image = conv.out_height * conv.out_width;
  if (plan.amx)  // of one image at a time
    for (int64_t from = first, to; from < last; from = to) run(from, to = std::min(last, (from / image + 1) * image));
  else
    run(first, last);
  kernel.run(tiles, input, own, plan_, begin, end);
}

// A block's first row, and the one behind its last.
std::pair<int64_t, int64_t> ConvStep::rows_of(int64_t block) const {
  if (plan_.amx && !pointwise) {
    const int64_t lines = conv.out_height, of_image = (lines + plan_.row_block - 1) / plan_.row_block;
    const int64_t image = block / of_image * plan_.amx, line = block % of_image * plan_.row_block;
    const int64_t images = std::min(plan_.amx, conv.batch - image), end = std::min(line + plan_.row_block, lines);
    return {(image * lines + line) * conv.out_width, ((image + images - 1) * lines + end) * conv.out_width};
  }
  const auto first = [&](int64_t n) {
    const int64_t at = n * plan_.row_block;
    return std::min(plan_.winograd ? winograd::first_row(conv, plan_.winograd, at) : at, plan_.rows);
  };
  return {first(block), first(block + 1)};
}

}  // namespace sparseq::network
