#include "amx.h"

#include <algorithm>

namespace sparseq::amx {
namespace {

constexpr int64_t kFewRows = 5;     // so many are quicker by vectors: their weights are read once in any case
constexpr int64_t kFewRows24 = 20;  // and need not be made dense
constexpr double kForeign = 10;     // bytes a cycle from there
constexpr double kUneven = 0.4;     // threads are not equally fast: what one turn each loses
constexpr int64_t kLine = 2;        // groups of a cache line of bytes: threads that share one hold each other up

int64_t ceil_of(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Of a window's first pixels to its last: whether all lie in the image.
bool inside(int64_t pad, int64_t outputs, int64_t stride, int64_t kernel, int64_t dilation, int64_t size) {
  return pad == 0 && (outputs - 1) * stride + (kernel - 1) * dilation < size;
}

}  // namespace

Frame frame(const WeightShape& weight, const ConvShape* conv, int64_t rows) {
  Frame f;
  f.pixel = weight.in_channels;
  if (f.pixel % 1024 == 0) f.pixel += 64;  // or a tile's rows would share a few sets of L1
  if (conv == nullptr) {
    f.copied = rows < kRows;  // a tile always reads 16
    f.pitch = 1;
    return f;
  }
  const ConvShape& s = *conv;
  f.copied = s.out_width < kRows ||
             !inside(s.pad_top, s.out_height, s.stride_height, s.kernel_height, s.dilation_height, s.height) ||
             !inside(s.pad_left, s.out_width, s.stride_width, s.kernel_width, s.dilation_width, s.width);
  f.remainders = s.kernel_height > 1 && s.dilation_height % s.stride_height != 0 ? s.stride_height : 1;
  f.reach = (s.kernel_height - 1) * s.dilation_height / s.stride_height;
  f.step = s.stride_width;
  f.pitch = s.out_width + ceil_of((s.kernel_width - 1) * s.dilation_width + 1, s.stride_width) - 1;
  return f;
}

std::optional<WorkPlan> plan(const Tiles& weight, const ConvShape* conv, int64_t rows, const CacheSizes& caches,
                             int threads) {
  const bool dense = weight.kind == WeightKind::dense;
  if (weight.layout.tile_inputs == 0 || rows <= (dense ? kFewRows : kFewRows24)) return {};
  const Frame f = frame(weight.shape, conv, rows);
  const int64_t images = conv ? conv->batch : 1, lines = conv ? conv->out_height : rows;
  const int64_t width = conv ? conv->out_width : 1;
  const double line_bytes = static_cast<double>(f.pitch) * static_cast<double>(f.step * f.pixel);
  const auto frames = [&](int64_t block) {
    return static_cast<double>(f.remainders) * static_cast<double>(block + f.reach + 1) * line_bytes;
  };
  const double most_bytes = static_cast<double>(caches.l2) / 2;
  if (conv && f.copied && frames(1) > 4 * most_bytes) return {};
  const auto groups = weight.shape.groups * weight.channel_groups();
  const auto steps = static_cast<double>(weight.shape.taps * ceil_of(weight.shape.in_channels, kInputs));
  const auto inputs = static_cast<double>(weight.shape.groups * weight.shape.in_channels);
  const auto outputs = static_cast<double>(weight.shape.groups * weight.shape.out_channels);
  // What comes from another core's cache or the one they share: of blocks' channels by halves half of the inputs, and
  // of the outputs what the next layer wants by lines again; of blocks by halves the other half of the weights.
  const double others = (1.0 - 1.0 / threads) / kForeign;
  const double pixels = conv ? static_cast<double>(images * conv->height * conv->width) : static_cast<double>(rows);
  const double by_channels = others * (pixels * inputs + static_cast<double>(rows) * outputs);
  const double by_blocks = others * outputs * steps * kInputs * (dense ? 1.0 : 0.625);

  WorkPlan plan;
  double best = 0;
  const auto consider = [&](int64_t block, int64_t together) {
    const int64_t blocks = ceil_of(images, together) * ceil_of(lines, block);
    // In cycles: pairs of tiles by all inputs, what is around them, the weights' way from L2, the frames' copies.
    const int64_t pairs =
        together * (f.copied || !conv ? ceil_of(conv ? (block - 1) * f.pitch + width : block, 2 * kRows)
                                      : block * ceil_of(width, 2 * kRows));
    const double item = static_cast<double>(pairs) * (64 * steps + 200) + (dense ? 60 : 180) * steps + 300;
    const double copies = f.copied ? static_cast<double>(together) * frames(block) / 24 + 500 : 200;
    for (int64_t claim = groups; claim > 0; claim = claim > kLine ? (claim - 1) / kLine * kLine : 0) {
      if (groups % claim != 0) continue;
      const auto turns = static_cast<double>(ceil_of(blocks * (groups / claim), threads));
      const double cost = turns * (static_cast<double>(claim) * item + copies) * (1 + kUneven / turns) +
                          (blocks < threads ? by_channels : by_blocks);
      if (best != 0 && cost >= best) continue;
      best = cost;
      plan.row_block = block, plan.row_blocks = blocks, plan.claim = claim, plan.amx = together;
    }
  };
  const int64_t unit = conv ? 1 : 2 * kRows;  // blocks of whole pairs of tiles
  for (int64_t parts = 1, last = 0; parts <= lines; parts = std::max(parts + 1, parts * 5 / 4)) {
    const int64_t block = std::min(lines, ceil_of(ceil_of(lines, parts), unit) * unit);
    const bool large = frames(block) > most_bytes;
    if (block == last || (large && block > unit)) continue;
    consider(block, 1);
    last = block;
  }
  for (int64_t together = 2; together <= images && together * frames(lines) <= most_bytes; together += 1 + together / 4)
    consider(lines, together);
  if (best == 0) return {};
  plan.rows = rows;
  plan.items = plan.row_blocks * groups;
  return plan;
}

}  // namespace sparseq::amx
