// The kernel of amx.h. Sums of a pair of tiles leave behind the first products of the next pair, which hides the way
// from the tile registers to memory. To spread them over all of its products gains nothing: while tile products wait for
// port 5, vectors of 512 bits are given to port 0 alone (Emerald Rapids).
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

#include "../core/amx_tiles.h"
#include "../core/names_512.h"
#include "amx.h"
#include "epilogue_kernel.h"
#include "row_pointers.h"

namespace {

template <class FloatTrait>
struct AmxKernel {
  using Finish = EpilogueKernel<FloatTrait, false>;
  static constexpr int64_t kRows = sparseq::amx::kRows, kGroup = sparseq::amx::kGroup;
  static constexpr int64_t kLead = kRows;  // rows before a pair's sums: a short last tile begins there

  // Rows at equal distances, of which some are outputs: of every `pitch` the first `width`.
  struct Run {
    const uint8_t* row;
    int64_t stride;  // bytes
    int64_t rows;
    int64_t pitch, width;
    int64_t output;  // row of the first
  };

  // Sums of up to 32 rows of a run, to be finished.
  class Pending {
   public:
    Pending() = default;
    Pending(const Finish& finish, const Run& run, int64_t first, int64_t rows, const int32_t* acc)
        : finish_(&finish), acc_(acc), left_(rows) {
      pitch_ = run.pitch, width_ = run.width;
      column_ = first % pitch_, output_ = run.output + first / pitch_ * width_;
    }
    void finish() {
      for (; left_ > 0; column_ = 0, output_ += width_) {
        const int64_t in_line = smaller(left_, pitch_ - column_), outputs = smaller(in_line, width_ - column_);
        if (outputs > 0) finish_->rows(acc_, kGroup, output_ + column_, outputs);
        acc_ += in_line * kGroup, left_ -= in_line;
      }
    }

   private:
    const Finish* finish_ = nullptr;
    const int32_t* acc_ = nullptr;
    int64_t left_ = 0, column_ = 0, pitch_ = 0, width_ = 0, output_ = 0;
  };

  // Weights of a work item, and where a run's row has its inputs for each step.
  struct Operands {
    const uint8_t* weights[2];  // of 16 channels each
    int64_t weight_row, weight_step;
    const int64_t* offsets;
    int64_t steps;
    const int32_t* starts;  // of the sums, [32]
    const uint8_t* next;    // weights that will be wanted soon, of which each step fetches some lines
    int64_t lines;
  };

  template <int kTiles, int kWidth>
  static void multiply(Operands& o, const uint8_t* first, const uint8_t* second, int64_t stride, int32_t* acc,
                       int64_t second_row, Pending& pending) {
    using T = AmxTiles;
    T::start<0>(o.starts);
    if (kWidth > 1) T::start<1>(o.starts + kGroup / 2);
    if (kTiles > 1) T::start<2>(o.starts);
    if (kTiles > 1 && kWidth > 1) T::start<3>(o.starts + kGroup / 2);
    const uint8_t *w0 = o.weights[0], *w1 = o.weights[1];
    for (int64_t s = 0; s < o.steps; ++s, w0 += o.weight_step, w1 += o.weight_step) {
      const int64_t at = o.offsets[s];
      T::load<6>(w0, o.weight_row);
      T::load<4>(first + at, stride);
      T::dot<0, 4, 6>();
      if (kTiles > 1) {
        T::load<5>(second + at, stride);
        T::dot<2, 5, 6>();
      }
      if (kWidth > 1) {
        T::load<7>(w1, o.weight_row);
        T::dot<1, 4, 7>();
        if (kTiles > 1) T::dot<3, 5, 7>();
      }
      for (int64_t line = 0; line < o.lines; ++line, o.next += 64) __builtin_prefetch(o.next, 0, 2);
      if (s == 0) pending.finish();
    }
    constexpr int64_t kBytes = kGroup * 4;
    T::store<0>(acc, kBytes);
    if (kWidth > 1) T::store<1>(acc + kGroup / 2, kBytes);
    if (kTiles > 1) T::store<2>(acc + second_row * kGroup, kBytes);
    if (kTiles > 1 && kWidth > 1) T::store<3>(acc + second_row * kGroup + kGroup / 2, kBytes);
  }

  static void run(const sparseq::Tiles& w, const sparseq::Input& input, const sparseq::Epilogue& epilogue,
                  const sparseq::WorkPlan& plan, int64_t begin, int64_t end) {
    if (begin >= end) return;
    const auto f = sparseq::amx::frame(w.shape, input.conv, plan.rows);
    const bool dense = w.kind == sparseq::WeightKind::dense;
    const int64_t block_inputs = dense ? sparseq::kDenseBlock : sparseq::kSparseBlock;
    const int64_t steps = w.tap_steps(block_inputs), inputs = w.step_blocks(block_inputs) * block_inputs;
    const int64_t all_steps = w.shape.taps * steps, channel_groups = w.channel_groups();
    const int64_t blocks = input.conv ? plan.row_blocks / input.conv->batch : plan.row_blocks;
    const int64_t frame_bytes = f.copied ? f.bytes(plan.row_block) : 0;
    const int64_t panel_bytes = dense ? 0 : all_steps * inputs * kGroup / 2;
    const int64_t acc_bytes = (kLead + 2 * kRows) * kGroup * 4;
    const int64_t offsets_bytes = (all_steps * 8 + 63) / 64 * 64;
    uint8_t* at = sparseq::thread_scratch(
        static_cast<std::size_t>(f.remainders * frame_bytes + 2 * panel_bytes + 2 * acc_bytes + offsets_bytes));
    const auto part = [&](int64_t size) { return std::exchange(at, at + size); };
    uint8_t* frames = part(f.remainders * frame_bytes);
    uint8_t* expanded[2] = {part(panel_bytes), part(panel_bytes)};
    int32_t* acc[2];
    for (auto& a : acc) a = reinterpret_cast<int32_t*>(part(acc_bytes)) + kLead * kGroup;
    auto* offsets = reinterpret_cast<int64_t*>(part(offsets_bytes));
    set_offsets(f, input, w.shape.taps, steps, inputs, frame_bytes, offsets);

    const AmxTiles tiles(inputs);
    int64_t copied = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t channel_group = item % channel_groups, block = item / channel_groups;
      const int64_t group = block % w.shape.groups, rows = block / w.shape.groups;
      const int64_t image = rows / blocks, first = rows % blocks * plan.row_block;
      const int64_t count = smaller(plan.row_block, (input.conv ? input.conv->out_height : plan.rows) - first);
      const uint8_t* source = input.data + group * w.shape.in_channels;
      if (f.copied && block != copied) {
        copy(f, input, w.shape, source, image, first, count, frame_bytes, frames);
        copied = block;
      }
      const int64_t channel = channel_group * kGroup, width = smaller(kGroup, w.shape.out_channels - channel);
      const Finish finish(epilogue, w.weight_sum, group * w.shape.out_channels + channel, width);
      const int64_t panel = group * w.panels + channel_group * kGroup / w.panel_width();
      alignas(64) int32_t starts[kGroup];
      finish.starts(starts);
      Operands o{{}, 64, inputs * kGroup / 2, offsets, all_steps, starts, nullptr, 0};
      const uint8_t* stored = w.data + w.chunk[panel * w.chunks].data;
      if (item + 1 < end && channel_group + 1 < channel_groups) {
        const int64_t next_panel = panel + kGroup / w.panel_width();
        o.next = w.data + w.chunk[next_panel * w.chunks].data;
        const int64_t runs = input.conv && !f.copied ? count : 1;
        const int64_t run_rows = !input.conv ? count : f.copied ? (count - 1) * f.pitch + input.conv->out_width : input.conv->out_width;
        const int64_t visits = runs * ((run_rows + 2 * kRows - 1) / (2 * kRows)) * all_steps;
        o.lines = ((o.next - stored) / 64 + visits - 1) / visits;
      }
      if (dense) {
        o.weights[0] = stored;
        o.weights[1] = o.weights[0] + 64;
        o.weight_row = 128, o.weight_step = inputs * kGroup;
      } else {
        for (int64_t p = 0; p < (width > kGroup / 2 ? 2 : 1); ++p) expand(w, panel + p, expanded[p]);
        o.weights[0] = expanded[0], o.weights[1] = expanded[1];
      }
      const auto products = [&](const Run& run, Pending& pending, int& turn) {
        const bool wide = width > kGroup / 2;
        const auto one_tile = wide ? &multiply<1, 2> : &multiply<1, 1>;
        const auto two_tiles = wide ? &multiply<2, 2> : &multiply<2, 1>;
        for (int64_t r = 0; r < run.rows; r += 2 * kRows) {
          const int64_t some = smaller(2 * kRows, run.rows - r);
          // A tile reads 16 rows: behind the last a frame has more, else it begins that much before.
          const bool one = some <= kRows;
          const int64_t from = one && !f.copied ? some - kRows : 0, second = f.copied ? kRows : some - kRows;
          int32_t* sums = acc[turn];
          const uint8_t* row = run.row + r * run.stride;
          (one ? one_tile : two_tiles)(o, row + from * run.stride, row + second * run.stride,
                                                         run.stride, sums + from * kGroup, second, pending);
          pending = Pending(finish, run, r, some, sums);
          turn ^= 1;
        }
      };
      Pending pending;
      int turn = 0;
      if (!input.conv) {
        const uint8_t* row = f.copied ? frames : source + first * input.stride;
        products({row, f.copied ? f.pixel : input.stride, count, count, count, first}, pending, turn);
      } else {
        const sparseq::ConvShape& s = *input.conv;
        const int64_t output = (image * s.out_height + first) * s.out_width;
        if (f.copied) {
          products({frames, f.step * f.pixel, (count - 1) * f.pitch + s.out_width, f.pitch, s.out_width, output},
                   pending, turn);
        } else {
          const int64_t pixels = input.line != 0 ? input.line : s.width;
          const uint8_t* line = source + (image * s.height + first * s.stride_height) * pixels * input.stride;
          for (int64_t y = 0; y < count; ++y, line += s.stride_height * pixels * input.stride)
            products({line, f.step * input.stride, s.out_width, s.out_width, s.out_width, output + y * s.out_width},
                     pending, turn);
        }
      }
      pending.finish();
    }
  }

 private:
  static void set_offsets(const sparseq::amx::Frame& f, const sparseq::Input& input, int64_t taps, int64_t steps,
                          int64_t inputs, int64_t frame_bytes, int64_t* offsets) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      int64_t offset = 0;
      if (input.conv) {
        const sparseq::ConvShape& s = *input.conv;
        const int64_t down = tap / s.kernel_width * s.dilation_height;
        const int64_t right = tap % s.kernel_width * s.dilation_width;
        if (f.copied)
          offset = down % s.stride_height * frame_bytes + down / s.stride_height * f.line_bytes() + right * f.pixel;
        else
          offset = (down * (input.line != 0 ? input.line : s.width) + right) * input.stride;
      }
      for (int64_t i = 0; i < steps; ++i) offsets[tap * steps + i] = offset + i * inputs;
    }
  }

  // A block's inputs, [remainder][line][pixel].
  static void copy(const sparseq::amx::Frame& f, const sparseq::Input& input, const sparseq::WeightShape& w,
                   const uint8_t* source, int64_t image, int64_t first, int64_t count, int64_t frame_bytes,
                   uint8_t* frames) {
    const auto channels = static_cast<std::size_t>(w.in_channels);
    if (!input.conv) {
      for (int64_t r = 0; r < count; ++r)
        std::memcpy(frames + r * f.pixel, source + (first + r) * input.stride, channels);
      return;
    }
    const sparseq::ConvShape& s = *input.conv;
    const int64_t line_pixels = input.line != 0 ? input.line : s.width, width = f.pitch * f.step;
    const int64_t before = smaller(s.pad_left, width), inside = smaller(s.width, width - before);
    const int value = input.padding != nullptr ? *input.padding : 0;
    const auto fill = [&](uint8_t* to, int64_t pixels) {
      std::memset(to, value, static_cast<std::size_t>(pixels * f.pixel));
    };
    for (int64_t remainder = 0; remainder < f.remainders; ++remainder)
      for (int64_t line = 0; line < f.lines(count); ++line) {
        const int64_t y = (first + line) * s.stride_height + remainder - s.pad_top;
        uint8_t* to = frames + remainder * frame_bytes + line * f.line_bytes();
        if (y < 0 || y >= s.height) {
          fill(to, width);
          continue;
        }
        fill(to, before);
        to += before * f.pixel;
        const uint8_t* from = source + (image * s.height + y) * line_pixels * input.stride;
        if (input.stride == f.pixel && w.groups == 1 && inside > 0) {
          std::memcpy(to, from, static_cast<std::size_t>((inside - 1) * f.pixel + w.in_channels));
        } else {
          for (int64_t x = 0; x < inside; ++x) std::memcpy(to + x * f.pixel, from + x * input.stride, channels);
        }
        fill(to + inside * f.pixel, width - before - inside);
      }
  }

  // A panel of 2:4 weights as tiles read it, [inputs / 4][16 channels][4].
  static void expand(const sparseq::Tiles& w, int64_t panel, uint8_t* to) {
    // Of a group of 4, by its values' positions p and q, p + 4 q: where each of its bytes is taken from, or 0.
    static constexpr auto kFrom = [] {
      struct Table {
        alignas(64) uint8_t bytes[2][16][4];
      } table{};
      for (int half = 0; half < 2; ++half)
        for (int n = 0; n < 16; ++n)
          for (int i = 0; i < 4; ++i)
            table.bytes[half][n][i] = static_cast<uint8_t>(i == n % 4 ? 2 * half : i == n / 4 ? 2 * half + 1 : 0x80);
      return table;
    }();
    const auto first = SPARSEQ_512(loadu_si512)(kFrom.bytes[0]), second = SPARSEQ_512(loadu_si512)(kFrom.bytes[1]);
    const auto low = SPARSEQ_512(set1_epi8)(3);
    const auto group = [&](auto index, auto from, auto values) SPARSEQ_INLINE {
      // vpshufb counts within 16 bytes: four channels.
      const auto lane = SPARSEQ_512(set4_epi32)(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
      const auto bytes = SPARSEQ_512(or_si512)(SPARSEQ_512(permutexvar_epi32)(index, from), lane);
      SPARSEQ_512(storeu_si512)(to, SPARSEQ_512(shuffle_epi8)(values, bytes));
      to += 64;
    };
    for (int64_t c = 0; c < w.chunks; ++c) {
      const sparseq::Chunk& chunk = w.chunk[panel * w.chunks + c];
      const uint8_t* from = w.data + chunk.data;
      for (uint32_t b = 0; b < chunk.count[0]; b += 2) {
        auto positions = SPARSEQ_512(loadu_si512)(from);
        from += 64;
        for (uint32_t step = 0; step < (b + 1 < chunk.count[0] ? 4u : 2u); ++step, from += 64) {
          const auto values = SPARSEQ_512(loadu_si512)(from);
          const auto fields = SPARSEQ_512(and_si512)(positions, low);
          const auto index = SPARSEQ_512(or_si512)(fields, SPARSEQ_512(srli_epi32)(fields, 6));
          group(index, first, values);
          group(SPARSEQ_512(srli_epi32)(index, 16), second, values);
          positions = SPARSEQ_512(srli_epi32)(positions, 2);
        }
      }
    }
  }
};

}  // namespace
