#include "prepare.h"

#include <cstring>

#include "tiles.h"

namespace sparseq::gemm {
namespace {

constexpr int64_t kGrain = 32768;  // elements: about 10 us of work, well over a thread's wake-up

int64_t aligned(int64_t size) { return (size + 63) / 64 * 64; }

// Kernels read whole blocks, a little past the end. Within the page of the last byte that is harmless
// whatever lies there, and nearly every tensor ends with that much of its page left.
bool slack_behind(const uint8_t* last) {
#ifdef __SANITIZE_ADDRESS__
  return (void)last, false;
#else
  return reinterpret_cast<uintptr_t>(last) % 4096 + kInputSlack < 4096;
#endif
}

// Bytes from one stored row to the next. At a multiple of 1024 a tile's 16 rows would share a few sets of L1
// (16x4096->4096 2:4 on Zen 5: 430 against 540 GMAC/s).
int64_t pitch_of(int64_t channels) { return channels % 1024 == 0 ? channels + 64 : channels; }

}  // namespace

// Bytes that are stored as kernels want them need no copy.
bool Prepared::ready(const Arguments& a, const Tensor& x, const Pixels& p, const Runs& runs) {
  if (a.x_type != Element::u8 || runs.count != 1 || (p.plane != 1 && p.channels > 1) || x.numel() == 0) return false;
  const auto* from = static_cast<const uint8_t*>(x.const_data_ptr());
  return slack_behind(from + (runs.length - 1) * runs.stride + p.channels - 1);
}

Scratch Prepared::room(const Arguments& a, const Tensor& x, const Pixels& p, const Runs& runs, bool padded) {
  const int64_t rows = runs.length * runs.count;
  int64_t size = ready(a, x, p, runs) ? 0 : aligned(rows * pitch_of(p.channels) + kInputSlack);
  if (a.x_scale.data) size += aligned(4 * a.weight.rows);
  if (a.dynamic) size += 2 * aligned(4 * rows);
  if (padded) size += p.channels + kInputSlack;
  return Scratch(size_t(size));
}

Prepared::Prepared(const Arguments& a, const Tensor& x, const Pixels& p, bool padded)
    : runs_(p), scratch_(room(a, x, p, runs_, padded)) {
  const int64_t rows = runs_.length * runs_.count;
  uint8_t* free = scratch_.data();
  const auto take = [&](int64_t size) { return std::exchange(free, free + aligned(size)); };
  const int32_t shift = a.x_limits.low < 0 ? 128 : 0;  // a signed activation a becomes a + 128
  epilogue.zero = shift + a.x_zero.first_or(0);
  epilogue.multiplier = a.scale.data;
  if (ready(a, x, p, runs_)) {
    input.data = static_cast<const uint8_t*>(x.const_data_ptr());
    input.stride = runs_.stride;
  } else {
    const int64_t pitch = pitch_of(p.channels);
    uint8_t* to = take(rows * pitch + kInputSlack);
    std::memset(to + rows * pitch, 0, size_t(kInputSlack));
    input.data = to;
    input.stride = pitch;
    if (a.dynamic) {
      epilogue.row_scale = reinterpret_cast<float*>(take(4 * rows));
      if (a.x_limits.low >= 0) epilogue.row_zero = reinterpret_cast<int32_t*>(take(4 * rows));
    }
    fill(a, x, p, to);
  }
  if (a.x_scale.data) {
    auto* product = reinterpret_cast<float*>(take(4 * a.weight.rows));
    for (int64_t n = 0; n < a.weight.rows; ++n) product[n] = a.scale.data[n] * a.x_scale.data[0];
    epilogue.multiplier = product;
  }
  if (padded) {
    std::memset(free, epilogue.zero, size_t(p.channels + kInputSlack));
    input.padding = free;
  }
}

void Prepared::fill(const Arguments& a, const Tensor& x, const Pixels& p, uint8_t* to) {
  RowQuantizer whole;
  whole.input = x.const_data_ptr();
  whole.input_type = a.x_type;
  whole.columns = p.channels;
  whole.output = to;
  whole.output_stride = input.stride;
  whole.input_step = p.channels > 1 ? p.plane : 1;
  whole.dynamic = a.dynamic;
  whole.scale = a.x_scale.first_or(1.0f);
  whole.zero_point = a.x_zero.first_or(0);
  whole.low = a.x_limits.low;
  whole.high = a.x_limits.high;
  whole.row_scale = const_cast<float*>(epilogue.row_scale);
  whole.row_zero = const_cast<int32_t*>(epilogue.row_zero);
  const Conversion conversion(whole, runs_, size_of(a.x_type));
  const Kernels& kernel = kernels(active_isa());
  const int64_t threads_grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, conversion.block * p.channels));
  torch::stable::parallel_for(0, conversion.tasks(), threads_grain,
                              [&](int64_t begin, int64_t end) { conversion.run(kernel, begin, end); });
}

}  // namespace sparseq::gemm
