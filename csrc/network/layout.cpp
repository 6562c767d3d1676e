#include "layout.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "../gemm/gemm.h"

namespace sparseq::network {
namespace {

constexpr int64_t kLine = 64;

struct Life {  // instructions, both included
  int64_t first = INT64_MAX, last = -1;
  void add(int64_t at) { first = std::min(first, at), last = std::max(last, at); }
  void add(const Life& other) { first = std::min(first, other.first), last = std::max(last, other.last); }
  bool meets(const Life& other) const { return first <= other.last && other.first <= last; }
};

class Planner {
 public:
  Planner(const Program& program, const std::vector<Shape>& shapes, const std::vector<gemm::Pixels>& inputs,
          const std::vector<int64_t>& within)
      : program_(program), shapes_(shapes), pixels_(inputs), within_(within) {
    const auto count = size_t(program.values());
    layout_.homes.resize(count);
    layout_.whole.assign(count, -1);
    layout_.inputs = inputs.size();
    first_channel_.resize(count);
    lives_.resize(count);
    users_.resize(count);
    columns_.resize(count);
    direct_.assign(count, -1);
    over_.assign(count, -1);
  }

  Layout run() {
    follow();
    for (size_t n = 0; n < program_.instructions.size(); ++n) {
      const Instruction& i = program_.instructions[n];
      if (i.op == Op::concat) join(i, result(n));
      if (i.op == Op::pad) frame(i, result(n));
    }
    allocate();
    for (size_t v = 0; v < layout_.homes.size(); ++v)
      if (layout_.whole[v] >= 0) settle(v);
    return std::move(layout_);
  }

 private:
  size_t result(size_t n) const { return program_.inputs.size() + n; }
  bool is_input(size_t v) const { return v < program_.inputs.size(); }

  // Uses and lifetimes.
  void follow() {
    for (size_t n = 0; n < program_.instructions.size(); ++n) {
      const Instruction& i = program_.instructions[n];
      for (const int32_t v : i.inputs) {
        ++users_[size_t(v)];
        if (i.columns > 1) columns_[size_t(v)] = true;
        if (!quantises(program_, i)) lives_[size_t(v)].add(std::max(int64_t(n), within_[result(n)]));
      }
      lives_[result(n)].add(int64_t(n));
    }
    for (size_t o = 0; o < program_.outputs.size(); ++o) {
      const auto v = size_t(program_.outputs[o].value);
      ++users_[v];
      lives_[v].add(int64_t(program_.instructions.size()));
      if (!is_input(v) && program_.grid(int32_t(v)) == nullptr && direct_[v] < 0) direct_[v] = int32_t(o);
    }
  }

  // Whether a value may be made where its copy on the same grid would lie: real(q) is q's own step then.
  bool same_grid(size_t v, size_t whole) const {
    const Grid *a = program_.grid(int32_t(v)), *b = program_.grid(int32_t(whole));
    if (a == nullptr || b == nullptr) return a == b;
    return *a == *b && std::isfinite(a->scale * 255.0f);
  }

  // Makers write straight into their channels of the joined value. Those that write whole lines, and values that are
  // read as such, cannot.
  void join(const Instruction& i, size_t whole) {
    int64_t channel = 0;
    for (const int32_t value : i.inputs) {
      const auto v = size_t(value);
      const Instruction* maker = program_.maker(value);
      if (maker != nullptr && maker->op != Op::pad && !quantises(program_, *maker) && layout_.whole[v] < 0 &&
          direct_[v] < 0 && !columns_[v] && same_grid(v, whole) &&
          std::count(i.inputs.begin(), i.inputs.end(), value) == 1)
        layout_.whole[v] = int32_t(whole), first_channel_[v] = channel;
      channel += shapes_[v].channels;
    }
  }

  // A quantised input is written into its frame.
  void frame(const Instruction& i, size_t whole) {
    const auto v = size_t(i.inputs[0]);
    const Instruction* maker = program_.maker(i.inputs[0]);
    if (maker != nullptr && quantises(program_, *maker) && users_[v] == 1 && same_grid(v, whole))
      layout_.whole[v] = int32_t(whole);
  }

  int64_t element(size_t v) const { return program_.grid(int32_t(v)) ? 1 : 4; }

  // At a multiple of 1024 bytes a tile's rows would share a few sets of L1 (gemm/prepare.cpp).
  int64_t pitch(size_t v) const {
    const int64_t channels = shapes_[v].channels;
    return element(v) == 1 && channels % 1024 == 0 && !columns_[v] ? channels + kLine : channels;
  }

  // Whether an input can be read as a value where it lies.
  void place_input(size_t v) {
    const gemm::Runs runs(pixels_[v]);
    const int64_t channels = shapes_[v].channels;
    Home& home = layout_.homes[v];
    home.loaded = lives_[v].last >= 0 &&
                  !(runs.count == 1 && runs.stride >= channels && (pixels_[v].plane == 1 || channels == 1));
    home.pixel = home.loaded ? channels : runs.stride;
    if (!home.loaded) home.place.base = layout_.input(v);
  }

  // Convolutions that add a value nobody else wants write over it: memory that is in the cache, and less of it.
  void take_over(const std::vector<int64_t>& sizes) {
    for (size_t n = 0; n < program_.instructions.size(); ++n) {
      const Instruction& i = program_.instructions[n];
      if (i.op != Op::conv || i.inputs.size() < 2 || i.inputs[0] == i.inputs[1]) continue;
      const auto added = size_t(i.inputs[1]), v = result(n);
      const bool alike = shapes_[added] == shapes_[v] && element(added) == element(v) &&
                         layout_.homes[added].pixel == layout_.homes[v].pixel;
      if (sizes[added] == 0 || sizes[v] == 0 || !alike || lives_[added].last != int64_t(n)) continue;
      over_[v] = over_[added] >= 0 ? over_[added] : int32_t(added);
      lives_[size_t(over_[v])].add(lives_[v]);
    }
  }

  // The largest first, each at the lowest offset that is free for its lifetime.
  void allocate() {
    std::vector<size_t> values;
    std::vector<int64_t> sizes(layout_.homes.size());
    for (size_t v = 0; v < layout_.homes.size(); ++v) {  // parts come before their wholes
      Home& home = layout_.homes[v];
      if (within_[v] >= 0) continue;
      if (layout_.whole[v] >= 0) {
        lives_[size_t(layout_.whole[v])].add(lives_[v]);
        continue;
      }
      home.pixel = pitch(v);
      if (is_input(v))
        place_input(v);
      else if (direct_[v] >= 0)
        home.place.base = layout_.output(size_t(direct_[v]));
      if (home.place.base != 0 || (is_input(v) && !home.loaded)) continue;
      sizes[v] = shapes_[v].pixels() * home.pixel * element(v) + kInputSlack;
      values.push_back(v);
    }
    take_over(sizes);
    std::erase_if(values, [&](size_t v) { return over_[v] >= 0; });
    std::stable_sort(values.begin(), values.end(), [&](size_t a, size_t b) { return sizes[a] > sizes[b]; });
    std::vector<size_t> placed;  // by offset
    for (const size_t v : values) {
      int64_t offset = 0;
      for (const size_t other : placed) {
        const int64_t at = layout_.homes[other].place.offset;
        if (!lives_[v].meets(lives_[other])) continue;
        if (at >= offset + sizes[v]) break;
        offset = std::max(offset, (at + sizes[other] + kLine - 1) / kLine * kLine);
      }
      layout_.homes[v].place.offset = offset;
      layout_.bytes = std::max(layout_.bytes, offset + sizes[v]);
      placed.insert(std::upper_bound(placed.begin(), placed.end(), v,
                                     [&](size_t a, size_t b) {
                                       return layout_.homes[a].place.offset < layout_.homes[b].place.offset;
                                     }),
                    v);
    }
    for (size_t v = 0; v < over_.size(); ++v)
      if (over_[v] >= 0) layout_.homes[v].place = layout_.homes[size_t(over_[v])].place;
  }

  // A part's home follows from its outermost whole's.
  void settle(size_t v) {
    int64_t elements = 0;
    size_t whole = v;
    for (; layout_.whole[whole] >= 0; whole = size_t(layout_.whole[whole])) elements += first_channel_[whole];
    Home& home = layout_.homes[v];
    home = layout_.homes[whole];
    const Instruction& i = *program_.maker(layout_.whole[v]);
    if (i.op == Op::pad) elements += (i.around[0] * shapes_[whole].width + i.around[2]) * home.pixel;
    home.place.offset += elements * element(v);
  }

  const Program& program_;
  const std::vector<Shape>& shapes_;
  const std::vector<gemm::Pixels>& pixels_;
  const std::vector<int64_t>& within_;
  Layout layout_;
  std::vector<int64_t> first_channel_;
  std::vector<Life> lives_;
  std::vector<int32_t> users_, direct_;  // direct: the output whose memory a value is made in
  std::vector<int32_t> over_;            // the value in whose memory one is made, or -1
  std::vector<char> columns_;            // read by a convolution of columns: pixels without gaps
};

}  // namespace

bool quantises(const Program& program, const Instruction& i) {
  return i.op == Op::map && i.constants.empty() && i.activation == Activation::none && i.grid &&
         i.inputs[0] < int32_t(program.inputs.size());
}

Layout lay_out(const Program& program, const std::vector<Shape>& shapes, const std::vector<gemm::Pixels>& inputs,
               const std::vector<int64_t>& within) {
  return Planner(program, shapes, inputs, within).run();
}

}  // namespace sparseq::network
