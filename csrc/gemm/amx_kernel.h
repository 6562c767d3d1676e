// The kernel of amx.h. Sums of a pair of tiles leave behind the first products of the next pair, which hides the way
// from the tile registers to memory. To spread them over all of its products gains nothing: while tile products wait
// for port 5, vectors of 512 bits are given to port 0 alone (Emerald Rapids).
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

#include "../core/amx_tiles.h"
#include "amx.h"
#include "dense24_avx512.h"
#include "epilogue_kernel.h"
#include "row_pointers.h"

namespace {

template <class FloatTrait>
class AmxKernel {
 public:
  static void run(const sparseq::Tiles& w, const sparseq::Input& input, const sparseq::Epilogue& epilogue,
                  const sparseq::WorkPlan& plan, int64_t begin, int64_t end) {
    if (begin >= end) return;
    AmxKernel kernel(w, input, epilogue, plan);
    const AmxTiles tiles(kernel.inputs_);
    for (int64_t item = begin; item < end; ++item) kernel.item(item, item + 1 < end);
  }

 private:
  using Finish = EpilogueKernel<FloatTrait, false>;
  static constexpr int64_t kRows = sparseq::amx::kRows, kGroup = sparseq::amx::kGroup, kHalf = kGroup / 2;
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
        : finish_(&finish), acc_(acc), rows_(rows) {
      pitch_ = run.pitch, width_ = run.width;
      column_ = first % pitch_, output_ = run.output + first / pitch_ * width_;
    }
    void finish() {
      parts([&](int64_t at, int64_t output, int64_t rows) { finish_->rows(acc_ + at * kGroup, kGroup, output, rows); });
      rows_ = 0;
    }
    void fetch() const {
      parts([&](int64_t, int64_t output, int64_t rows) { finish_->fetch(output, rows); });
    }

   private:
    // f(first row of the sums, of the outputs, rows) of each line's outputs.
    template <class F>
    SPARSEQ_INLINE void parts(F f) const {
      int64_t column = column_, output = output_;
      for (int64_t at = 0; at < rows_; column = 0, output += width_) {
        const int64_t in_line = smaller(rows_ - at, pitch_ - column), outputs = smaller(in_line, width_ - column);
        if (outputs > 0) f(at, output + column, outputs);
        at += in_line;
      }
    }
    const Finish* finish_ = nullptr;
    const int32_t* acc_ = nullptr;
    int64_t rows_ = 0, column_ = 0, pitch_ = 0, width_ = 0, output_ = 0;
  };

  // A work item.
  struct Operands {
    const uint8_t* weights[2];  // of 16 channels each
    int64_t weight_row, weight_step;
    const int64_t* offsets;  // of a run's rows, to their inputs for each step
    int64_t steps;
    const int32_t* starts;  // of the sums, [32]; null: 0
    const uint8_t* next;    // weights that will be wanted soon, of which each step fetches some lines
    int64_t lines;
  };

  template <int kTiles, int kWidth>
  static void multiply(Operands& o, const uint8_t* first, const uint8_t* second, int64_t stride, int32_t* acc,
                       int64_t second_row, Pending& pending) {
    using T = AmxTiles;
    if (o.starts == nullptr) {
      T::zero<0>(), T::zero<1>(), T::zero<2>(), T::zero<3>();
    } else {
      T::start<0>(o.starts);
      if (kWidth > 1) T::start<1>(o.starts + kHalf);
      if (kTiles > 1) T::start<2>(o.starts);
      if (kTiles > 1 && kWidth > 1) T::start<3>(o.starts + kHalf);
    }
    const uint8_t *w0 = o.weights[0], *w1 = o.weights[1];
    for (int64_t s = 0; s < o.steps; ++s, w0 += o.weight_step, w1 += o.weight_step) {
      const int64_t at = o.offsets[s];
      // All loads before the products: where a core's other thread is busy, too, each waits for what is before it
      // (one after the other 25 ns a product, so 21; else 7 in any order).
      T::load<6>(w0, o.weight_row);
      if (kWidth > 1) T::load<7>(w1, o.weight_row);
      T::load<4>(first + at, stride);
      if (kTiles > 1) T::load<5>(second + at, stride);
      T::dot<0, 4, 6>();
      if (kWidth > 1) T::dot<1, 4, 7>();
      if (kTiles > 1) T::dot<2, 5, 6>();
      if (kTiles > 1 && kWidth > 1) T::dot<3, 5, 7>();
      for (int64_t line = 0; line < o.lines; ++line, o.next += 64) __builtin_prefetch(o.next, 0, 2);
      if (s == 0) pending.finish();
    }
    constexpr int64_t kBytes = kGroup * 4;
    T::store<0>(acc, kBytes);
    if (kWidth > 1) T::store<1>(acc + kHalf, kBytes);
    if (kTiles > 1) T::store<2>(acc + second_row * kGroup, kBytes);
    if (kTiles > 1 && kWidth > 1) T::store<3>(acc + second_row * kGroup + kHalf, kBytes);
  }

  using Multiply = void (*)(Operands&, const uint8_t*, const uint8_t*, int64_t, int32_t*, int64_t, Pending&);
  static Multiply choose(bool two_tiles, bool wide) {
    static constexpr Multiply table[2][2] = {{multiply<1, 1>, multiply<1, 2>}, {multiply<2, 1>, multiply<2, 2>}};
    return table[two_tiles][wide];
  }

  AmxKernel(const sparseq::Tiles& w, const sparseq::Input& input, const sparseq::Epilogue& epilogue,
            const sparseq::WorkPlan& plan)
      : w_(w),
        input_(input),
        epilogue_(epilogue),
        plan_(plan),
        frame_(sparseq::amx::frame(w.shape, input.conv, plan.rows)),
        dense_(w.kind == sparseq::WeightKind::dense),
        block_inputs_(dense_ ? sparseq::kDenseBlock : sparseq::kSparseBlock),
        inputs_(w.step_blocks(block_inputs_) * block_inputs_),
        steps_(w.shape.taps * w.tap_steps(block_inputs_)),
        frame_bytes_(frame_.copied ? frame_.bytes(plan.row_block) : 0),
        image_bytes_(frame_.remainders * frame_bytes_) {
    const int64_t panel = dense_ ? 0 : steps_ * inputs_ * kHalf, acc = (kLead + 2 * kRows) * kGroup * 4;
    const int64_t frames = plan.amx * image_bytes_, offsets = (steps_ * 8 + 63) / 64 * 64;
    uint8_t* at = sparseq::thread_scratch(static_cast<std::size_t>(frames + 2 * panel + 2 * acc + offsets));
    const auto part = [&](int64_t size) { return std::exchange(at, at + size); };
    frames_ = part(frames);
    for (auto& e : expanded_) e = part(panel);
    for (auto& a : acc_) a = reinterpret_cast<int32_t*>(part(acc)) + kLead * kGroup;
    offsets_ = reinterpret_cast<int64_t*>(part(offsets));
    set_offsets();
  }

  void set_offsets() {
    const int64_t in_tap = steps_ / w_.shape.taps, line = line_pixels() * input_.stride;
    for (int64_t step = 0; step < steps_; ++step) {
      const int64_t tap = step / in_tap;
      offsets_[step] = step % in_tap * inputs_;
      if (!input_.conv) continue;
      const sparseq::ConvShape& s = *input_.conv;
      const int64_t down = tap / s.kernel_width * s.dilation_height, right = tap % s.kernel_width * s.dilation_width;
      offsets_[step] += frame_.copied ? down % s.stride_height * frame_bytes_ +
                                            down / s.stride_height * frame_.line_bytes() + right * frame_.pixel
                                      : down * line + right * input_.stride;
    }
  }
  int64_t line_pixels() const { return !input_.conv ? 0 : input_.line != 0 ? input_.line : input_.conv->width; }

  void item(int64_t item, bool more) {
    const int64_t channel_groups = w_.channel_groups(), channel_group = item % channel_groups;
    const int64_t block = item / channel_groups, group = block % w_.shape.groups, rows = block / w_.shape.groups;
    const sparseq::ConvShape* conv = input_.conv;
    const int64_t lines = conv ? conv->out_height : plan_.rows,
                  of_image = (lines + plan_.row_block - 1) / plan_.row_block;
    const int64_t image = rows / of_image * plan_.amx, first = rows % of_image * plan_.row_block;
    const int64_t images = conv ? smaller(plan_.amx, conv->batch - image) : 1;
    const int64_t count = smaller(plan_.row_block, lines - first);
    const uint8_t* source = input_.data + group * w_.shape.in_channels;
    if (frame_.copied && std::exchange(copied_, block) != block)
      for (int64_t i = 0; i < images; ++i) copy(source, image + i, first, count, frames_ + i * image_bytes_);

    const int64_t channel = channel_group * kGroup, width = smaller(kGroup, w_.shape.out_channels - channel);
    const Finish finish(epilogue_, w_.weight_sum, group * w_.shape.out_channels + channel, width);
    alignas(64) int32_t starts[kGroup];
    const bool from_zero = !finish.starts(starts);  // as behind a ReLU
    const int64_t panels = kGroup / w_.panel_width(), panel = group * w_.panels + channel_group * panels;
    const auto stored = [&](int64_t p) { return w_.data + w_.chunk[p * w_.chunks].data; };
    Operands o{{}, 64, inputs_ * kHalf, offsets_, steps_, from_zero ? nullptr : starts, nullptr, 0};
    if (dense_) {
      o.weights[0] = stored(panel), o.weights[1] = stored(panel) + 64;
      o.weight_row = 128, o.weight_step = inputs_ * kGroup;
    } else {
      for (int64_t p = 0; p < panels; ++p) o.weights[p] = expanded_[p];
      for (int64_t p = 0; p * kHalf < width; ++p) expand_sparse24(w_, panel + p, expanded_[p]);
    }
    // Runs of rows: without conv one, of a frame one an image, else one a line.
    const bool by_line = conv && !frame_.copied;
    const int64_t runs = by_line ? count : 1;
    Run run{frame_.copied ? frames_ : source + first * input_.stride,
            frame_.copied ? frame_.pixel : input_.stride,
            count,
            count,
            count,
            first};
    if (conv) {
      run.stride *= frame_.step;
      run.rows = by_line ? conv->out_width : (count - 1) * frame_.pitch + conv->out_width;
      run.pitch = by_line ? conv->out_width : frame_.pitch, run.width = conv->out_width;
    }
    if (more && channel_group + 1 < channel_groups) {
      const int64_t visits = images * runs * ((run.rows + 2 * kRows - 1) / (2 * kRows)) * steps_;
      o.next = stored(panel + panels);
      o.lines = ((o.next - stored(panel)) / 64 + visits - 1) / visits;
    }
    Pending pending;
    for (int64_t i = 0; i < images; ++i)
      for (int64_t line = 0; line < runs; ++line) {
        if (conv) {
          const int64_t y = first + line;
          run.output = ((image + i) * conv->out_height + y) * conv->out_width;
          run.row =
              by_line ? source + ((image + i) * conv->height + y * conv->stride_height) * line_pixels() * input_.stride
                      : frames_ + i * image_bytes_;
        }
        products(o, run, finish, width > kHalf, pending);
      }
    pending.finish();
  }

  void products(Operands& o, const Run& run, const Finish& finish, bool wide, Pending& pending) {
    for (int64_t r = 0; r < run.rows; r += 2 * kRows) {
      const int64_t some = smaller(2 * kRows, run.rows - r);
      // A tile reads 16 rows: behind the last a frame has more, else it begins that much before.
      const bool two = some > kRows;
      const int64_t from = two || frame_.copied ? 0 : some - kRows, second = frame_.copied ? kRows : some - kRows;
      int32_t* sums = acc_[turn_ ^= 1];
      const uint8_t* row = run.row + r * run.stride;
      choose(two, wide)(o, row + from * run.stride, row + second * run.stride, run.stride, sums + from * kGroup, second,
                        pending);
      pending = Pending(finish, run, r, some, sums);
      pending.fetch();
    }
  }

  // A block's inputs, [remainder][line][pixel].
  void copy(const uint8_t* source, int64_t image, int64_t first, int64_t count, uint8_t* frames) const {
    const sparseq::amx::Frame& f = frame_;
    const auto channels = static_cast<std::size_t>(w_.shape.in_channels);
    if (!input_.conv) {
      for (int64_t r = 0; r < count; ++r)
        std::memcpy(frames + r * f.pixel, source + (first + r) * input_.stride, channels);
      return;
    }
    const sparseq::ConvShape& s = *input_.conv;
    const int64_t width = f.pitch * f.step;
    const int64_t before = smaller(s.pad_left, width), inside = smaller(s.width, width - before);
    const int value = input_.padding != nullptr ? *input_.padding : 0;
    const auto fill = [&](uint8_t* to, int64_t pixels) {
      std::memset(to, value, static_cast<std::size_t>(pixels * f.pixel));
    };
    for (int64_t remainder = 0; remainder < f.remainders; ++remainder)
      for (int64_t line = 0; line < f.lines(count); ++line) {
        const int64_t y = (first + line) * s.stride_height + remainder - s.pad_top;
        uint8_t* to = frames + remainder * frame_bytes_ + line * f.line_bytes();
        if (y < 0 || y >= s.height) {
          fill(to, width);
          continue;
        }
        fill(to, before);
        to += before * f.pixel;
        const uint8_t* from = source + (image * s.height + y) * line_pixels() * input_.stride;
        if (input_.stride == f.pixel && w_.shape.groups == 1 && inside > 0) {
          std::memcpy(to, from, static_cast<std::size_t>((inside - 1) * f.pixel + w_.shape.in_channels));
        } else {
          for (int64_t x = 0; x < inside; ++x) std::memcpy(to + x * f.pixel, from + x * input_.stride, channels);
        }
        fill(to + inside * f.pixel, width - before - inside);
      }
  }

  const sparseq::Tiles& w_;
  const sparseq::Input& input_;
  const sparseq::Epilogue& epilogue_;
  const sparseq::WorkPlan& plan_;
  const sparseq::amx::Frame frame_;
  const bool dense_;
  const int64_t block_inputs_, inputs_, steps_;  // of a block, of a step; steps of all taps
  const int64_t frame_bytes_, image_bytes_;      // of one remainder, of all
  uint8_t* frames_;
  uint8_t* expanded_[2];
  int32_t* acc_[2];
  int64_t* offsets_;
  int64_t copied_ = -1;  // the block in the frames
  int turn_ = 0;
};

}  // namespace
