// The kernel of amx.h: 32 rows by 32 channels at a time, or by each 16 of them where few tile registers are better
// (amx_tiles.h). 2:4 weights are made dense beside it for the next item; for 33 to 64 rows in all, which wait for
// weights, step by step in L1, and multiplied by all rows then. What sums they make become outputs while the next are
// made, a few rows after each step: vectors run beside tile products as long as both fit the core's queues together,
// which a whole epilogue does not.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

#include "amx_products.h"

namespace {

template <class FloatTrait>
class AmxKernel : AmxProducts<FloatTrait> {
 public:
  static void run(const sparseq::Tiles& w, const sparseq::Input& input, const sparseq::Epilogue& epilogue,
                  const sparseq::WorkPlan& plan, int64_t begin, int64_t end) {
    if (begin >= end) return;
    AmxKernel kernel(w, input, epilogue, plan);
    const AmxTiles tiles(kernel.inputs_, kernel.tall_ ? kTall : kernel.few_ ? kFew : kAll);
    for (int64_t item = begin; item < end; ++item) kernel.item(item, item + 1 < end);
  }

 private:
  using Base = AmxProducts<FloatTrait>;
  using Base::kGroup, Base::kPanels, Base::kRing, Base::kRows, Base::kWidth, Base::kAll, Base::kFew, Base::kTall;
  using typename Base::Expand, typename Base::Fetch, typename Base::Finish, typename Base::Lines, typename Base::Made;
  using typename Base::Operands, typename Base::Run, typename Base::Whole;
  template <class Outputs>
  using Queue = typename Base::template Queue<Outputs>;
  template <int64_t kRowsAtOnce>
  using Pending = typename Base::template Pending<kRowsAtOnce>;
  static constexpr int64_t kLead = kRows;  // rows before a pair's sums: a short last tile begins there
  static constexpr int64_t kTallRows = 4 * kRows;

  AmxKernel(const sparseq::Tiles& w, const sparseq::Input& input, const sparseq::Epilogue& epilogue,
            const sparseq::WorkPlan& plan)
      : w_(w),
        input_(input),
        epilogue_(epilogue),
        plan_(plan),
        frame_(sparseq::amx::frame(w.shape, input.conv, plan.rows - plan.start)),
        dense_(w.kind == sparseq::WeightKind::dense),
        tall_(is_tall(w, input, plan, frame_)),
        few_(AmxTiles::shared()),
        block_inputs_(dense_ ? sparseq::kDenseBlock : sparseq::kSparseBlock),
        inputs_(w.step_blocks(block_inputs_) * block_inputs_),
        steps_(w.shape.taps * w.tap_steps(block_inputs_)),
        frame_bytes_(frame_.copied ? frame_.bytes(plan.row_block) : 0),
        image_bytes_(frame_.remainders * frame_bytes_) {
    const int64_t panels = dense_  ? 0
                           : tall_ ? kRing * inputs_ * kWidth
                                   : kPanels * steps_ * inputs_ * kWidth,
                  acc = (kLead + kTallRows) * kGroup * 4;
    const int64_t frames = plan.amx * image_bytes_, offsets = (steps_ * 8 + 63) / 64 * 64;
    uint8_t* at = sparseq::thread_scratch(static_cast<std::size_t>(frames + 2 * panels + 2 * acc + offsets));
    const auto part = [&](int64_t size) { return std::exchange(at, at + size); };
    frames_ = part(frames);
    for (auto& e : expanded_) e = part(panels);
    for (auto& a : acc_) a = reinterpret_cast<int32_t*>(part(acc)) + kLead * kGroup;
    offsets_ = reinterpret_cast<int64_t*>(part(offsets));
    set_offsets();
  }

  // 2:4 weights of one chunk a panel, which a ring needs, and items of one run of 33 to 64 rows.
  static bool is_tall(const sparseq::Tiles& w, const sparseq::Input& input, const sparseq::WorkPlan& plan,
                      const sparseq::amx::Frame& frame) {
    if (w.kind == sparseq::WeightKind::dense || w.chunks > 1) return false;
    if (plan.amx > 1 || (input.conv && !frame.copied)) return false;
    const int64_t lines = input.conv ? input.conv->out_height : plan.rows, rest = lines % plan.row_block;
    const auto fits = [&](int64_t block) {
      const int64_t rows = input.conv ? (block - 1) * frame.pitch + input.conv->out_width : block;
      return rows > 2 * kRows && rows <= kTallRows;
    };
    return fits(smaller(plan.row_block, lines)) && (rest == 0 || lines < plan.row_block || fits(rest));
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
    const int64_t line = conv ? plan_.start / conv->out_width : plan_.start;  // the first
    const int64_t image = rows / of_image * plan_.amx + (conv ? line / lines : 0);
    const int64_t first = rows % of_image * plan_.row_block + (conv ? line % lines : line);
    const int64_t images = conv ? smaller(plan_.amx, conv->batch - image) : 1;
    const int64_t count = smaller(plan_.row_block, lines - first);
    const uint8_t* source = input_.data + group * w_.shape.in_channels;
    if (frame_.copied && std::exchange(copied_, block) != block)
      for (int64_t i = 0; i < images; ++i) copy(source, image + i, first, count, frames_ + i * image_bytes_);

    const int64_t channel = channel_group * kGroup, channels = smaller(kGroup, w_.shape.out_channels - channel);
    const int64_t panels = (channels + kWidth - 1) / kWidth;
    const auto finish = [&](int64_t from, int64_t count) {
      return Finish(epilogue_, w_.weight_sum, group * w_.shape.out_channels + channel + from,
                    smaller(count, channels - from));
    };
    const Finish finishes[] = {finish(0, kWidth), finish((panels - 1) * kWidth, kWidth)};
    const int64_t panel = (group * channel_groups + channel_group) * kPanels;
    const auto stored = [&](int64_t p) { return w_.data + w_.chunk[p * w_.chunks].data; };
    Operands o{{}, {}, inputs_ * kWidth, steps_, panels, offsets_, nullptr, nullptr, 0};
    const uint8_t* dense = dense_ ? stored(panel) : tall_ ? nullptr : expanded(panel);
    alignas(64) int32_t starts[kPanels][kWidth];
    for (int64_t p = 0; p < panels; ++p) {
      o.weights[p] = dense == nullptr ? nullptr : dense + p * steps_ * o.weight_step;
      o.starts[p] = finishes[p].starts(starts[p]) ? starts[p] : nullptr;  // else behind a ReLU, say
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
    const int64_t last = w_.shape.groups * channel_groups - 1;  // behind it the first
    const int64_t next = panel == last * kPanels ? 0 : panel + kPanels, bytes = kPanels * steps_ * o.weight_step;
    const int64_t visits = images * runs * ((run.rows + 2 * kRows - 1) / (2 * kRows)) * (few_ ? panels : 1) * steps_;
    const auto each = [&](int64_t size) { return more && next != panel ? (bytes / size + visits - 1) / visits : 0; };
    Lines fetch{dense_ ? stored(next) : nullptr, each(64)};
    if (!dense_ && !tall_) expand_ahead(next, each(1));
    Expand expand{ahead_, ahead_to_, each(512)};
    const auto all = [&]<class Outputs>(const Outputs(&outputs)[kPanels], auto& ahead) {
      Queue<Outputs> pending;
      for (int64_t i = 0; i < images; ++i)
        for (int64_t at = 0; at < runs; ++at) {
          if (conv) {
            const int64_t y = first + at;
            run.output = ((image + i) * conv->out_height + y) * conv->out_width;
            run.row = by_line ? source + ((image + i) * conv->height + y * conv->stride_height) * line_pixels() *
                                             input_.stride
                              : frames_ + i * image_bytes_;
          }
          if (tall_)
            tall_products(o, run, finishes, outputs, pending, panel);
          else
            products(o, run, finishes, outputs, pending, ahead);
        }
      for (int64_t p = 0; p < panels; ++p) pending[p].all(outputs[p]);
    };
    const auto with = [&]<class Outputs>(const Outputs(&outputs)[kPanels]) {
      dense_ ? all(outputs, fetch) : all(outputs, expand);
    };
    if (Base::with_quick(finishes, with)) return;
    const Finish whole = finish(0, kGroup);
    with({Whole(panels > 1 ? nullptr : &whole), Whole(&whole)});
  }

  // 2:4 weights made dense: those that the item before prepared, or all at once.
  const uint8_t* expanded(int64_t panel) {
    if (panel != expanded_panel_ && panel == ahead_panel_) {
      ahead_.all(ahead_to_);
      turned_ ^= 1;
    } else if (panel != expanded_panel_) {
      Expansion24(w_, panel, kPanels).all(expanded_[turned_]);
    }
    expanded_panel_ = panel;
    return expanded_[turned_];
  }
  void expand_ahead(int64_t panel, bool wanted) {
    ahead_panel_ = wanted ? panel : -1;
    ahead_ = wanted ? Expansion24(w_, panel, kPanels) : Expansion24();
    ahead_to_ = expanded_[turned_ ^ 1];
  }

  template <class Outputs, class Ahead>
  void products(Operands& o, const Run& run, const Finish (&finishes)[kPanels], const Outputs (&outputs)[kPanels],
                Queue<Outputs>& pending, Ahead& ahead) {
    const bool both = o.panels > 1 && !few_;
    for (int64_t r = 0; r < run.rows; r += 2 * kRows) {
      const int64_t some = smaller(2 * kRows, run.rows - r);
      // A tile reads 16 rows: behind the last a frame has more, else it begins that much before.
      const bool two = some > kRows;
      const int64_t from = two || frame_.copied ? 0 : some - kRows, second = frame_.copied ? kRows : some - kRows;
      o.first = run.row + (r + from) * run.stride, o.second = run.row + (r + second) * run.stride;
      o.stride = run.stride;
      int32_t* acc = acc_[turn_ ^= 1];
      const int64_t lead = from * kGroup, apart = second * kGroup;
      if (both)
        (two ? Base::template multiply_both<true, Outputs, Ahead>
             : Base::template multiply_both<false, Outputs, Ahead>)(o, acc + lead, apart, pending, outputs, ahead);
      for (int64_t p = 0; p < o.panels; ++p) {
        const int64_t before = p > 0 ? 0 : o.panels - 1;
        if (!both)
          (two ? Base::template multiply<true, Outputs, Ahead>
               : Base::template multiply<false, Outputs, Ahead>)(o, p, acc + lead + p * kWidth, apart, pending[before],
                                                                 outputs[before], ahead);
        pending[p] = Pending<Outputs::kRows>(run, r, some, acc);
        Pending<Fetch::kRows>(run, r, some, acc).all(Fetch{finishes[p]});
      }
    }
  }

  template <class Outputs>
  void tall_products(Operands& o, const Run& run, const Finish (&finishes)[kPanels], const Outputs (&outputs)[kPanels],
                     Queue<Outputs>& pending, int64_t panel) {
    int64_t at[4];
    for (int64_t t = 0; t < 4; ++t) at[t] = frame_.copied ? t * kRows : smaller(t * kRows, run.rows - kRows);
    o.first = run.row, o.stride = run.stride;
    int32_t* acc = acc_[turn_ ^= 1];
    for (int64_t p = 0; p < o.panels; ++p) {
      const int64_t before = p > 0 ? 0 : o.panels - 1;
      Base::multiply_tall(o, p, at, acc + p * kWidth, pending[before], outputs[before],
                          Made(Expansion24(w_, panel + p, 1), expanded_[0], o.weight_step));
      pending[p] = Pending<Outputs::kRows>(run, 0, run.rows, acc);
      Pending<Fetch::kRows>(run, 0, run.rows, acc).all(Fetch{finishes[p]});
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
  const bool dense_, tall_, few_;
  const int64_t block_inputs_, inputs_, steps_;  // of a block, of a step; steps of all taps
  const int64_t frame_bytes_, image_bytes_;      // of one remainder, of all
  uint8_t* frames_;
  uint8_t* expanded_[2];  // panels of this item and the next one, in turns
  int turned_ = 0;
  int64_t expanded_panel_ = -1, ahead_panel_ = -1;
  Expansion24 ahead_;
  uint8_t* ahead_to_ = nullptr;
  int32_t* acc_[2];  // of a pair of tiles' rows, in turns
  int64_t* offsets_;
  int64_t copied_ = -1;  // the block in the frames
  int turn_ = 0;
};

}  // namespace
