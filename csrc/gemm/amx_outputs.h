// How AMX's sums become outputs beside the products that follow.
#pragma once
#include <cstdint>
#include <type_traits>

#include "amx.h"
#include "epilogue_kernel.h"
#include "row_pointers.h"

namespace {

template <class FloatTrait>
struct AmxOutputs {
  using Finish = EpilogueKernel<FloatTrait, false>;
  static constexpr int64_t kRows = sparseq::amx::kRows, kGroup = sparseq::amx::kGroup;
  static constexpr int64_t kWidth = sparseq::amx::kWidth, kPanels = sparseq::amx::kPanels;

  // Rows at equal distances, of which some are outputs: of every `pitch` the first `width`.
  struct Run {
    const uint8_t* row;
    int64_t stride;  // bytes
    int64_t rows;
    int64_t pitch, width;
    int64_t output;  // row of the first
  };

  // How rows of sums, [rows][32], become outputs: by the epilogue as it is, both panels' with the last one's,
  class Whole {
   public:
    // At once where the rest has Quick, by twos elsewhere.
    static constexpr int64_t kRows = Finish::kFours ? 2 * sparseq::amx::kRows : 2;
    explicit Whole(const Finish* finish) : finish_(finish) {}
    void some(const int32_t* acc, int64_t row, int64_t rows) const {
      if (finish_ != nullptr) finish_->rows(acc, kGroup, row, rows);
    }
    void whole(const Whole&, const int32_t* acc, int64_t row) const { some(acc, row, kRows); }

   private:
    const Finish* finish_;
  };
  // or each panel's by constants that stay in registers while tiles are multiplied.
  template <class Residual>
  class Quick {
   public:
    using Fours = typename Finish::template Fours<Residual, 1>;
    static constexpr int64_t kRows = Fours::kRows;
    static bool takes(const Finish& f) { return f.count == kWidth && f.template narrow<Residual>(); }

    Quick(const Finish& f, int64_t panel)
        : fours_(f, 0),
          panel_(panel * kWidth),
          to_(static_cast<uint8_t*>(f.e.output) + f.channel),
          to_stride_(f.e.output_stride) {
      if constexpr (std::is_same_v<Residual, uint8_t>)
        from_ = static_cast<const uint8_t*>(f.e.residual) + f.channel, from_stride_ = f.e.residual_stride;
    }
    // there: the same in memory, where what is no vector may stay.
    SPARSEQ_INLINE void whole(const Quick& there, const int32_t* acc, int64_t row) const {
      const int64_t from_stride = there.from_stride_, to_stride = there.to_stride_;
      typename Fours::Rows each;
      each.acc[0] = acc + there.panel_, each.from[0] = there.from_ + row * from_stride,
      each.to[0] = there.to_ + row * to_stride;
      unroll<kRows - 1>([&](auto r) SPARSEQ_INLINE {
        each.acc[r + 1] = each.acc[r] + kGroup;
        each.from[r + 1] = each.from[r] + from_stride, each.to[r + 1] = each.to[r] + to_stride;
      });
      fours_(each);
    }
    void some(const int32_t* acc, int64_t row, int64_t rows) const {  // behind the last the last once more
      typename Fours::Rows each;
      unroll<kRows>([&](auto r) SPARSEQ_INLINE {
        const int64_t on = smaller(r, rows - 1);
        each.acc[r] = acc + panel_ + on * kGroup;
        each.from[r] = from_ + (row + on) * from_stride_, each.to[r] = to_ + (row + on) * to_stride_;
      });
      fours_(each);
    }

   private:
    Fours fours_;
    int64_t panel_;  // its first channel
    uint8_t* to_;
    const Residual* from_ = nullptr;
    int64_t to_stride_, from_stride_ = 0;
  };
  // or not yet: lines that will be read and written.
  struct Fetch {
    static constexpr int64_t kRows = 2 * sparseq::amx::kRows;
    const Finish& finish;
    void some(const int32_t*, int64_t row, int64_t rows) const { finish.fetch(row, rows); }
    void whole(const Fetch&, const int32_t* acc, int64_t row) const { some(acc, row, kRows); }
  };

  // Sums of some rows of a run that are no outputs yet, by line.
  template <int64_t kRowsAtOnce>
  class Pending {
   public:
    Pending() = default;
    Pending(const Run& run, int64_t first, int64_t rows, const int32_t* acc)
        : acc_(acc), rows_(rows), pitch_(run.pitch), width_(run.width) {
      const int64_t column = first % pitch_, outputs = width_ - column;
      row_ = run.output + first / pitch_ * width_ + column;
      line(pitch_ - column, outputs < 0 ? 0 : outputs);
      if (outputs < 0) row_ += outputs;
    }
    bool any() const { return whole_ + part_ + rows_ > 0; }
    template <class Outputs>
    SPARSEQ_INLINE void some(const Outputs& outputs, const Outputs& there) {
      if (whole_ > 0) {
        outputs.whole(there, acc_, row_);
        --whole_, acc_ += kRowsAtOnce * kGroup, row_ += kRowsAtOnce;
      } else if (any()) {
        rest(there);
      }
    }
    template <class Outputs>
    void all(const Outputs& outputs) {
      while (any()) some(outputs, outputs);
    }

   private:
    // The next of the rows, up to the line's end, and those among them that are outputs.
    void line(int64_t rows, int64_t outputs) {
      rows = smaller(rows, rows_), outputs = smaller(outputs, rows);
      rows_ -= rows, skip_ = rows - outputs;
      whole_ = static_cast<int32_t>(outputs / kRowsAtOnce), part_ = static_cast<int32_t>(outputs % kRowsAtOnce);
    }
    template <class Outputs>
    __attribute__((noinline)) void rest(const Outputs& outputs) {
      if (part_ > 0) outputs.some(acc_, row_, part_);
      acc_ += (part_ + skip_) * kGroup, row_ += part_;
      line(pitch_, width_);
    }
    const int32_t* acc_ = nullptr;
    int64_t row_ = 0;                           // of outputs
    int32_t whole_ = 0, part_ = 0;              // of this line: kRowsAtOnce of them, as often; and then so many
    int64_t skip_ = 0;                          // and then rows that are none
    int64_t rows_ = 0, pitch_ = 0, width_ = 0;  // behind this line
  };

  // f(how either panel's outputs are made), where Quick makes them.
  template <class G>
  static bool with_quick(const Finish (&f)[kPanels], G g) {
    const auto by = [&]<class Residual>(Residual) {
      if (!Quick<Residual>::takes(f[0]) || !Quick<Residual>::takes(f[1])) return false;
      const Quick<Residual> outputs[] = {Quick<Residual>(f[0], 0), Quick<Residual>(f[1], 1)};
      g(outputs);
      return true;
    };
    if constexpr (Finish::kFours) return by(typename Finish::None{}) || by(uint8_t{});
    return false;
  }
};

}  // namespace
