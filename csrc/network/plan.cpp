#include "plan.h"

#include <cstring>

#include "fail.h"

namespace sparseq::network {
namespace {

constexpr size_t kIdle = 8;  // runs kept for the next calls

// Nanoseconds of one element, about: what is worth a thread is decided by it.
double cost_of(Activation activation) { return activation <= Activation::hardswish ? 0.3 : 1.5; }

}  // namespace

class Plan::Builder {
 public:
  Builder(Plan& plan, const std::vector<TensorInfo>& inputs, const std::vector<TensorInfo>& constants, Isa isa)
      : plan_(plan), program_(*plan.program_), constants_(constants), isa_(isa), kernels_(network::kernels(isa)) {
    shapes_ = shapes_of(program_, inputs, constants);
    for (size_t n = 0; n < inputs.size(); ++n) pixels_.push_back(pixels_of(program_.inputs[n], inputs[n]));
    find_within();
    layout_ = lay_out(program_, shapes_, pixels_, within_);
    plan_.bytes_ = layout_.bytes;
  }

  void run() {
    std::vector<char> here(program_.inputs.size());  // loaded inputs that are there already
    const auto load = [&](int32_t value, size_t n) {
      const auto v = size_t(value);
      if (v >= here.size() || !layout_.homes[v].loaded || std::exchange(here[v], 1)) return;
      add(LoadStep(pixels_[v], {layout_.input(v), 0}, layout_.homes[v].place, plan_.threads_), n);
    };
    for (size_t n = 0; n < program_.instructions.size(); ++n) {
      const Instruction& i = program_.instructions[n];
      if (within_[size_t(result(n))] >= 0) continue;
      if (quantises(program_, i)) {
        quantise(i, n);
        continue;
      }
      for (const int32_t v : i.inputs) load(v, n);
      instruction(i, n);
    }
    const size_t end = program_.instructions.size();
    for (size_t o = 0; o < program_.outputs.size(); ++o) {
      const auto [value, form] = program_.outputs[o];
      const Shape& shape = shapes_[size_t(value)];
      plan_.outputs_.push_back({tensor_shape(form, shape), form == Form::image});
      const Place to{layout_.output(o), 0};
      if (layout_.homes[size_t(value)].place.base == to.base) continue;  // made there
      load(value, end);
      MapStep step;
      step.map.y.pixel = shape.channels;
      copy(step, value, to, end);
    }
  }

 private:
  int32_t result(size_t n) const { return int32_t(program_.inputs.size() + n); }
  const Shape& shape(int32_t value) const { return shapes_[size_t(value)]; }
  Place place(int32_t value) const { return layout_.homes[size_t(value)].place; }

  // Convolutions of single pixels whose float32 outputs another one adds, and nobody else wants: in memory they would
  // be four times what they are made of (ResNet's downsampling).
  void find_within() {
    std::vector<int> users(size_t(program_.values()));
    for (const Instruction& i : program_.instructions)
      for (const int32_t v : i.inputs) ++users[size_t(v)];
    for (const auto& output : program_.outputs) ++users[size_t(output.value)];
    within_.assign(users.size(), -1);
    for (size_t n = 0; n < program_.instructions.size(); ++n) {
      const Instruction& i = program_.instructions[n];
      if (i.op != Op::conv || i.inputs.size() < 2 || i.groups != 1) continue;
      const Instruction* made = program_.maker(i.inputs[1]);
      if (made == nullptr || made->op != Op::conv || made->inputs.size() > 1 || made->grid || made->groups != 1)
        continue;
      const auto& w = constants_[size_t(made->constants[0])].sizes;
      if (w[2] == 1 && w[3] == 1 && users[size_t(i.inputs[1])] == 1) within_[size_t(i.inputs[1])] = int64_t(n);
    }
  }

  template <class S>
  void add(S step, size_t n) {
    plan_.steps_.emplace_back(std::move(step));
    plan_.makers_.push_back(n);
  }
  Share share(int64_t items, double nanoseconds) const { return network::share(items, nanoseconds, plan_.threads_); }

  View view(int32_t value) const {
    const Shape& s = shape(value);
    View v{nullptr, Element::f32, s.images, s.height, s.width, s.channels, layout_.homes[size_t(value)].pixel};
    if (const Grid* g = program_.grid(value)) v.type = Element::u8, v.scale = g->scale, v.zero = g->zero;
    return v;
  }
  Target target(const Instruction& i, size_t n) const {
    Target t{nullptr, Element::f32, layout_.homes[size_t(result(n))].pixel};
    if (i.grid) t = {nullptr, Element::u8, t.pixel, i.grid->scale, i.grid->zero, i.grid->low, i.grid->high};
    return t;
  }

  // A value's reals to another place, on the grid that step.map.y says.
  void copy(MapStep step, int32_t value, Place to, size_t n) {
    step.x = place(value), step.y = to;
    step.map.x = view(value);
    step.kernels = &kernels_;
    step.prepare();
    const Shape& s = shape(value);
    step.share = share(s.pixels(), double(s.channels) * cost_of(step.map.activation));
    add(std::move(step), n);
  }

  void quantise(const Instruction& i, size_t n) {
    const auto input = size_t(i.inputs[0]);
    const gemm::Pixels& p = pixels_[input];
    const int32_t y = result(n), frame = layout_.whole[size_t(y)];
    const int64_t pitch = layout_.homes[size_t(y)].pixel;
    RowQuantizer q;
    q.input_type = Element::f32;
    q.columns = p.channels;
    q.input_step = p.channels > 1 ? p.plane : 1;
    q.scale = i.grid->scale, q.zero_point = i.grid->zero, q.low = i.grid->low, q.high = i.grid->high;
    q.output_stride = pitch;
    gemm::Conversion conversion(q, gemm::Runs(p, frame < 0 ? 3 : 1), sizeof(float));
    if (frame >= 0) {  // line by line into the middle of it
      const Shape& whole = shape(frame);
      conversion.lines = p.height;
      conversion.line = whole.width * pitch;
      conversion.image = whole.height * conversion.line;
    }
    const Share divided = share(conversion.tasks(), 0.4 * double(conversion.block * p.channels));
    add(QuantiseStep{{layout_.input(input), 0}, place(y), conversion, &gemm::kernels(isa_), divided}, n);
  }

  void instruction(const Instruction& i, size_t n) {
    switch (i.op) {
      case Op::map: {
        MapStep step;
        step.map.y = target(i, n);
        step.map.activation = i.activation;
        if (!i.constants.empty()) step.scale = i.constants[0], step.shift = i.constants[1];
        return copy(std::move(step), i.inputs[0], place(result(n)), n);
      }
      case Op::conv: return add(convolution(i, n), n);
      case Op::max_pool:
      case Op::avg_pool:
      case Op::adaptive: return pool(i, n);
      case Op::add:
      case Op::mul: return binary(i, n);
      case Op::concat: return concat(i, n);
      case Op::pad: return pad(i, n);
      case Op::layer_norm: return norm(i, n);
      case Op::attention: return attention(i, n);
    }
  }

  void concat(const Instruction& i, size_t n) {
    const int32_t y = result(n);
    Place to = place(y);
    for (const int32_t v : i.inputs) {
      if (layout_.whole[size_t(v)] != y) {
        MapStep step;
        step.map.y = target(i, n);
        copy(std::move(step), v, to, n);
      }
      to.offset += shape(v).channels * (i.grid ? 1 : 4);
    }
  }

  void pad(const Instruction& i, size_t n) {
    const int32_t x = i.inputs[0], y = result(n);
    const Shape &from = shape(x), &to = shape(y);
    PadStep step{};
    step.line.x = place(x), step.line.y = place(y);
    step.line.map.x = view(x), step.line.map.y = target(i, n);
    step.line.map.x.images = step.line.map.x.height = 1;
    step.line.kernels = &kernels_;
    step.line.prepare();
    step.lines = to.height, step.width = to.width;
    step.above = i.around[0], step.before = i.around[2];
    step.x_width = from.width, step.x_height = from.height;
    step.element = i.grid ? 1 : 4;
    step.copy = layout_.whole[size_t(x)] != y;
    step.share = share(to.images * to.height, (step.copy ? 0.3 : 0.02) * double(to.width * to.channels));
    add(std::move(step), n);
  }

  void binary(const Instruction& i, size_t n) {
    const Shape& s = shape(result(n));
    BinaryStep step{place(i.inputs[0]), place(i.inputs[1]), place(result(n)), {}, &kernels_, {}};
    step.binary.a = view(i.inputs[0]), step.binary.b = view(i.inputs[1]);
    step.binary.y = target(i, n);
    step.binary.product = i.op == Op::mul;
    step.binary.activation = i.activation;
    step.binary.images = s.images, step.binary.height = s.height, step.binary.width = s.width;
    step.share = share(s.pixels(), double(s.channels) * (0.2 + cost_of(i.activation)));
    add(std::move(step), n);
  }

  void pool(const Instruction& i, size_t n) {
    const Shape &from = shape(i.inputs[0]), &to = shape(result(n));
    PoolStep step{place(i.inputs[0]), place(result(n)), {}, 1, &kernels_, {}};
    Pool& p = step.pool;
    p.x = view(i.inputs[0]), p.y = target(i, n);
    p.kind = i.op == Op::max_pool ? PoolKind::max : i.op == Op::avg_pool ? PoolKind::average : PoolKind::adaptive;
    p.out_height = to.height, p.out_width = to.width;
    p.kernel_height = i.kernel[0], p.kernel_width = i.kernel[1];
    p.stride_height = i.stride[0], p.stride_width = i.stride[1];
    p.pad_top = i.padding[0], p.pad_left = i.padding[1];
    p.dilation_height = i.dilation[0], p.dilation_width = i.dilation[1];
    p.include_pad = i.include_pad, p.divisor = i.divisor;
    const double window = i.op == Op::adaptive ? double(from.pixels()) / double(std::max<int64_t>(1, to.pixels()))
                                               : double(i.kernel[0] * i.kernel[1]);
    const int64_t pixels = to.pixels();
    if (pixels < 4 * plan_.threads_) step.blocks = (to.channels + PoolStep::kChannels - 1) / PoolStep::kChannels;
    step.share = share(pixels * step.blocks, (0.5 + 0.1 * window) * double(to.channels) / double(step.blocks));
    add(std::move(step), n);
  }

  void norm(const Instruction& i, size_t n) {
    const Shape& s = shape(result(n));
    NormStep step{place(i.inputs[0]), place(result(n)), {}, -1, -1, &kernels_, {}};
    step.norm.x = view(i.inputs[0]), step.norm.y = target(i, n);
    step.norm.eps = i.eps;
    step.norm.activation = i.activation;
    if (!i.constants.empty()) step.weight = i.constants[0], step.bias = i.constants[1];
    step.share = share(s.pixels(), double(s.channels) * (0.7 + cost_of(i.activation)));
    add(std::move(step), n);
  }

  void attention(const Instruction& i, size_t n) {
    AttentionStep step{{}, place(result(n)), {}, &kernels_, {}};
    for (size_t k = 0; k < 3; ++k) {
      step.inputs[k] = place(i.inputs[k]);
      step.inputs[k].offset += i.first[k] * int64_t(sizeof(float));
    }
    Attention& a = step.attention;
    a.q = view(i.inputs[0]), a.k = view(i.inputs[1]), a.v = view(i.inputs[2]);
    a.y = target(i, n);
    a.heads = i.heads, a.depth = i.width / i.heads;
    a.scale = i.scale, a.causal = i.causal;
    const Shape &q = shape(i.inputs[0]), &k = shape(i.inputs[1]);
    const int64_t blocks = (q.height * q.width + Attention::kBlock - 1) / Attention::kBlock;
    const double keys = double(k.height * k.width) * (i.causal ? 0.5 : 1);
    step.share = share(q.images * i.heads * blocks, double(Attention::kBlock) * keys * (0.05 * double(a.depth) + 0.5));
    add(std::move(step), n);
  }

  ConvStep convolution(const Instruction& i, size_t n) {
    const auto& w = constants_[size_t(i.constants[0])].sizes;
    const Shape &x = shape(i.inputs[0]), &y = shape(result(n));
    ConvStep step;
    step.x = place(i.inputs[0]), step.y = place(result(n));
    step.shape = {i.groups, w[0] / i.groups, w[2] * w[3], w[1]};
    ConvShape& c = step.conv;
    c.batch = x.images, c.height = x.height, c.width = x.width - (i.columns - 1);
    c.out_height = y.height, c.out_width = y.width;
    c.kernel_height = w[2], c.kernel_width = w[3];
    c.stride_height = i.stride[0], c.stride_width = i.stride[1];
    c.pad_top = i.padding[0], c.pad_left = i.padding[1];
    c.dilation_height = i.dilation[0], c.dilation_width = i.dilation[1];
    const bool padded = i.padding[0] > 0 || i.padding[1] > 0;
    step.pointwise = w[2] == 1 && w[3] == 1 && i.stride == std::array<int64_t, 2>{1, 1} && !padded && i.columns == 1;
    const Grid& from = *program_.grid(i.inputs[0]);
    step.input.stride = layout_.homes[size_t(i.inputs[0])].pixel;
    step.input.line = x.width;
    if (padded) step.input.padding = zeros(from.zero, w[1] * i.groups);
    Epilogue& e = step.epilogue;
    e.zero = from.zero;
    e.activation = i.activation;
    const Target to = target(i, n);
    e.output_type = to.type, e.output_stride = to.pixel;
    e.output_scale = to.scale, e.output_zero_point = to.zero, e.output_low = to.low, e.output_high = to.high;
    if (i.inputs.size() > 1) {
      const View r = view(i.inputs[1]);
      step.residual = place(i.inputs[1]);
      e.residual_type = r.type, e.residual_stride = r.pixel;
      e.residual_scale = r.scale, e.residual_zero_point = r.zero;
      if (within_[size_t(i.inputs[1])] >= 0)
        step.added.push_back(convolution(*program_.maker(i.inputs[1]), size_t(i.inputs[1]) - program_.inputs.size()));
    }
    for (size_t k = 0; k < i.constants.size(); ++k) step.constants[k] = i.constants[k];
    step.tiles_bytes = constants_[size_t(i.constants[1])].sizes[0];
    step.threads = plan_.threads_;
    step.isa = isa_;
    return step;
  }

  // A pixel outside of the image.
  const uint8_t* zeros(int32_t zero, int64_t channels) {
    auto pixel = std::make_shared<AlignedBytes>(size_t(channels + kInputSlack));
    std::memset(pixel->data(), zero, pixel->size());
    plan_.padding_.push_back(pixel);
    return pixel->data();
  }

  Plan& plan_;
  const Program& program_;
  const std::vector<TensorInfo>& constants_;
  const Isa isa_;
  const Kernels& kernels_;
  std::vector<Shape> shapes_;
  std::vector<gemm::Pixels> pixels_;
  std::vector<int64_t> within_;  // lay_out's
  Layout layout_;
};

Plan::Plan(std::shared_ptr<const Program> program, const std::vector<TensorInfo>& inputs,
           const std::vector<TensorInfo>& constants, Isa isa, int64_t threads)
    : program_(std::move(program)), threads_(threads) {
  Builder(*this, inputs, constants, isa).run();
}

std::unique_ptr<Run> Plan::take() const {
  {
    const std::lock_guard lock(mutex_);
    if (!idle_.empty()) {
      std::unique_ptr<Run> run = std::move(idle_.back());
      idle_.pop_back();
      return run;
    }
  }
  auto run = std::make_unique<Run>();
  run->steps = steps_;
  return run;
}

void Plan::give(std::unique_ptr<Run> run) const {
  const std::lock_guard lock(mutex_);
  if (idle_.size() < kIdle) idle_.push_back(std::move(run));
}

void Plan::bind(Run& run, const Call& call) const {
  for (size_t n = 0; n < run.steps.size(); ++n) {
    try {
      std::visit([&](auto& step) { step.bind(call); }, run.steps[n]);
    } catch (const std::invalid_argument& error) {
      fail(name_of(*program_, makers_[n]), ": ", error.what());
    }
  }
}

int64_t Plan::useful_threads(const Run& run) const {
  int64_t most = 1;
  for (const Step& step : run.steps) std::visit([&](const auto& s) { most = std::max(most, s.share.claims()); }, step);
  return std::min(most, threads_);
}

}  // namespace sparseq::network
