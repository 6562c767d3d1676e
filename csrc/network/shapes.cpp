#include "shapes.h"

#include <algorithm>

#include "fail.h"

namespace sparseq::network {
namespace {

constexpr int64_t kMostElements = int64_t{1} << 42;  // of a value: its bytes, padded, stay far inside of int64
constexpr int64_t kMostDepth = 33025;                // products |q - zero| * |w| in an exact int32 sum, with room
constexpr int64_t kMostWindow = 0x7fffffff / 255;    // pixels of u8 in an int32 sum

std::string text_of(const Shape& s) {
  return "[" + std::to_string(s.images) + ", " + std::to_string(s.height) + ", " + std::to_string(s.width) + ", " +
         std::to_string(s.channels) + "]";
}

void check_size(const Shape& s, const std::string& what) {
  int64_t left = kMostElements;
  for (const int64_t size : {s.height, s.width, s.channels, std::max<int64_t>(1, s.images)}) {
    require(size >= 1, what, " must have at least one pixel and channel, got ", text_of(s));
    require(size <= left, what, " must have at most 2^42 elements, got ", text_of(s));
    left /= size;
  }
}

// Windows along one dimension; see sparseq.program.windows.
int64_t windows(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation, bool ceil,
                const std::string& what) {
  const int64_t span = size + 2 * padding - dilation * (kernel - 1) - 1;
  require(span >= 0, what, ": its input must be at least as large as the kernel, got ", size, " and 2 x ", padding,
          " of padding for ", kernel);
  if (!ceil) return span / stride + 1;
  const int64_t count = (span + stride - 1) / stride + 1;
  return (count - 1) * stride >= size + padding ? count - 1 : count;
}

class Shapes {
 public:
  Shapes(const Program& program, const std::vector<TensorInfo>& constants) : program_(program), constants_(constants) {}

  std::vector<Shape> found;

  void add(size_t n) {
    const Instruction& i = program_.instructions[n];
    what_ = name_of(program_, n);
    const Shape x = of(i, 0);
    Shape y = x;
    switch (i.op) {
      case Op::map:
      case Op::layer_norm:
        for (const int32_t c : i.constants) constant(c, Element::f32, {x.channels});
        break;
      case Op::conv: y = convolution(i, x); break;
      case Op::max_pool:
      case Op::avg_pool: y = window(i, x, i.kernel, i.ceil); break;
      case Op::adaptive: y.height = i.size[0], y.width = i.size[1]; break;
      case Op::add:
      case Op::mul: binary(x, of(i, 1)); break;
      case Op::concat:
        for (size_t v = 1; v < i.inputs.size(); ++v) {
          Shape other = of(i, v);
          y.channels += std::exchange(other.channels, x.channels);
          require(other == x, what_, ": inputs must differ in channels only, got ", text_of(of(i, v)), " after ",
                  text_of(x));
          require(y.channels <= kMostElements, what_, ": its result must have at most 2^42 elements");
        }
        break;
      case Op::attention: y = attention(i, x); break;
      case Op::pad: y.height += i.around[0] + i.around[1], y.width += i.around[2] + i.around[3]; break;
    }
    check_size(y, what_ + ": its result");
    if (i.op == Op::avg_pool || i.op == Op::adaptive) sum(i, x, y);
    found.push_back(y);
  }

 private:
  const Shape& of(const Instruction& i, size_t input) const { return found[size_t(i.inputs[input])]; }

  void constant(int32_t number, Element type, const std::vector<int64_t>& sizes) const {
    const TensorInfo& c = constants_[size_t(number)];
    require(c.type == type && c.contiguous && c.sizes == sizes, what_, ": constant ", number, " must be contiguous ",
            type == Element::f32 ? "float32" : "int8", " of ", sizes.size(), " dimensions and ", sizes[0], " channels");
  }

  Shape window(const Instruction& i, Shape x, const std::array<int64_t, 2>& kernel, bool ceil) const {
    x.height = windows(x.height, kernel[0], i.stride[0], i.padding[0], i.dilation[0], ceil, what_);
    x.width = windows(x.width, kernel[1], i.stride[1], i.padding[1], i.dilation[1], ceil, what_);
    return x;
  }

  Shape convolution(const Instruction& i, Shape x) const {
    const TensorInfo& w = constants_[size_t(i.constants[0])];
    require(w.type == Element::s8 && w.contiguous && w.sizes.size() == 4 &&
                std::all_of(w.sizes.begin(), w.sizes.end(), [](int64_t s) { return s >= 1 && s <= kMostElements; }),
            what_, ": weight must be contiguous int8 [O, I / groups, kh, kw], not empty");
    const int64_t outputs = w.sizes[0], inputs = w.sizes[1];
    require(i.columns <= x.width && (i.columns == 1 || w.sizes[3] == 1), what_,
            ": columns must be at most the width, with a kernel one wide, got ", i.columns);
    require(outputs % i.groups == 0 && inputs * i.groups == x.channels * i.columns, what_, ": weight must have ",
            x.channels * i.columns, " inputs in ", i.groups, " groups, got ", inputs, " in each");
    const int64_t depth = w.sizes[2] <= kMostDepth ? w.sizes[2] * w.sizes[3] : kMostDepth + 1;
    require(depth <= kMostDepth && inputs * depth <= kMostDepth, what_, ": weight must have at most ", kMostDepth,
            " inputs for an exact int32 sum");
    const TensorInfo& tiles = constants_[size_t(i.constants[1])];
    require(tiles.type == Element::u8 && tiles.contiguous && tiles.sizes.size() == 1, what_,
            ": tiles must be a contiguous uint8 vector");
    for (size_t c = 2; c < i.constants.size(); ++c) constant(i.constants[c], Element::f32, {outputs});
    x.width -= i.columns - 1;
    Shape y = window(i, x, {w.sizes[2], w.sizes[3]}, false);
    y.channels = outputs;
    require(i.inputs.size() == 1 || of(i, 1) == y, what_, ": residual must have the shape of the result, ", text_of(y),
            ", got ", i.inputs.size() == 1 ? "" : text_of(of(i, 1)));
    return y;
  }

  void binary(const Shape& x, const Shape& y) const {
    const bool pixels = (y.height == x.height && y.width == x.width) || (y.height == 1 && y.width == 1);
    require((y.images == x.images || y.images == 1) && pixels && y.channels == x.channels, what_,
            ": the second input must have the first's shape, or size 1 in images or in height and width, got ",
            text_of(x), " and ", text_of(y));
  }

  Shape attention(const Instruction& i, Shape q) const {
    const Shape &k = of(i, 1), &v = of(i, 2);
    require(k.images == q.images && v.images == q.images && k.height == v.height && k.width == v.width, what_,
            ": q, k and v must have as many images, and k and v the same pixels, got ", text_of(q), ", ", text_of(k),
            " and ", text_of(v));
    require(i.width % i.heads == 0, what_, ": heads must divide width, got ", i.heads, " and ", i.width);
    for (size_t n = 0; n < 3; ++n)
      require(of(i, n).channels >= i.first[n] + i.width, what_, ": input ", n, " must have ", i.width,
              " channels from channel ", i.first[n], " on, got ", text_of(of(i, n)));
    q.channels = i.width;
    return q;
  }

  void sum(const Instruction& i, const Shape& x, const Shape& y) const {
    const int64_t rows = i.op == Op::avg_pool ? i.kernel[0] : x.height / y.height + 2;
    const int64_t columns = i.op == Op::avg_pool ? i.kernel[1] : x.width / y.width + 2;
    require(std::min(rows, x.height) <= kMostWindow / std::min(columns, x.width), what_,
            ": a window must hold at most ", kMostWindow, " pixels for an exact int32 sum");
  }

  const Program& program_;
  const std::vector<TensorInfo>& constants_;
  std::string what_;
};

}  // namespace

gemm::Pixels pixels_of(Form form, const TensorInfo& t) {
  const auto& n = t.sizes;
  const auto& s = t.strides;
  switch (form) {
    case Form::image: return {n[0], n[2], n[3], n[1], s[0], s[2], s[3], s[1]};
    case Form::pixels: return {n[0], n[1], n[2], n[3], s[0], s[1], s[2], s[3]};
    case Form::rows: return {n[0], 1, n[1], n[2], s[0], 0, s[1], s[2]};
    case Form::vector: break;
  }
  return {n[0], 1, 1, n[1], s[0], 0, 0, s[1]};
}

std::vector<int64_t> tensor_shape(Form form, const Shape& s) {
  switch (form) {
    case Form::image: return {s.images, s.channels, s.height, s.width};
    case Form::pixels: return {s.images, s.height, s.width, s.channels};
    case Form::rows: return {s.images, s.height * s.width, s.channels};
    case Form::vector: break;
  }
  return {s.images, s.channels};
}

std::vector<Shape> shapes_of(const Program& program, const std::vector<TensorInfo>& inputs,
                             const std::vector<TensorInfo>& constants) {
  require(inputs.size() == program.inputs.size(), "inputs must be ", program.inputs.size(), " tensors, got ",
          inputs.size());
  require(int64_t(constants.size()) >= program.constants, "constants must be at least ", program.constants,
          " tensors, got ", constants.size());
  Shapes shapes(program, constants);
  for (size_t n = 0; n < inputs.size(); ++n) {
    const Form form = program.inputs[n];
    const size_t dims = form == Form::rows ? 3 : form == Form::vector ? 2 : 4;
    require(inputs[n].type == Element::f32 && inputs[n].sizes.size() == dims, "input ", n, " must be float32 of ", dims,
            " dimensions (", name_of(form), ")");
    const gemm::Pixels p = pixels_of(form, inputs[n]);
    shapes.found.push_back({p.batch, p.height, p.width, p.channels});
    check_size(shapes.found.back(), "input " + std::to_string(n));
  }
  for (size_t n = 0; n < program.instructions.size(); ++n) shapes.add(n);
  for (const Output& output : program.outputs) {
    const Shape& s = shapes.found[size_t(output.value)];
    require(output.form != Form::vector || s.height * s.width == 1,
            "an output in the form vector must be one pixel, got ", text_of(s));
  }
  return shapes.found;
}

}  // namespace sparseq::network
