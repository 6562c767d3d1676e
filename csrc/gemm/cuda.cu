// INT8 linear and convolution on CUDA: torch tensors in, kernels on torch's current stream. No kernel is written
// here. Nothing but int8_tiles waits for the device: scales and zero points are read by the kernels, so a zero
// point out of its range is not refused as on the CPU.
#include "../affine/launch.h"
#include "../core/cuda.h"
#include "../sparse24/arguments.h"
#include "../sparse24/fault.h"
#include "arguments.h"
#include "launch.h"

namespace sparseq::gemm {
namespace {

using Optional = std::optional<Tensor>;

Element cuda_element(const char* op, const char* argument, ScalarType type) {
  const Element element = element_of(type);
  STD_TORCH_CHECK(element != Element::none, op, ": ", argument,
                  " must be float32, float16, bfloat16, int8 or uint8, got ", dtype_name(type));
  return element;
}

affine::DType float_type(Element element) {
  return element == Element::f32   ? affine::DType::float32
         : element == Element::f16 ? affine::DType::float16
                                   : affine::DType::bfloat16;
}

void check_device(const char* op, const char* argument, const Optional& t, const Tensor& x) {
  STD_TORCH_CHECK(!t || t->device() == x.device(), op, ": ", argument, " must be on x's device");
}

// What both products read beside x, checked and kept alive. The shapes of x and y are the callers'.
struct Given {
  Tensor x, weight;
  Vector<float> scale, bias, x_scale, residual_scale, y_scale;
  Vector<int32_t> x_zero, weight_zero, residual_zero, y_zero;
  Element x_type, y_type;
  ScalarType dtype;
  Activation activation;
  Limits x_limits, y_limits;
  bool dynamic;

  Given(const char* op, const Tensor& x_, const Tensor& w, const Tensor& scale_, const Optional& x_zero_,
        const Optional& weight_zero_, const Optional& bias_, const Options& o)
      : x(x_),
        weight(made_contiguous(w)),
        scale(op, "scale", scale_, ScalarType::Float, w.size(0)),
        bias(op, "bias", bias_, ScalarType::Float, w.size(0)),
        x_scale(op, "x_scale", o.x_scale, ScalarType::Float, 1),
        residual_scale(op, "residual_scale", o.residual_scale, ScalarType::Float, 1),
        y_scale(op, "y_scale", o.y_scale, ScalarType::Float, 1),
        x_zero(op, "x_zero", x_zero_, ScalarType::Int, 1),
        weight_zero(op, "weight_zero", weight_zero_, ScalarType::Int, w.size(0)),
        residual_zero(op, "residual_zero", o.residual_zero, ScalarType::Int, 1),
        y_zero(op, "y_zero", o.y_zero, ScalarType::Int, 1),
        x_type(cuda_element(op, "x", x.scalar_type())),
        dtype(o.dtype.value_or(is_byte(x_type) ? ScalarType::Float : x.scalar_type())),
        activation(activation_of(op, o.activation)),
        x_limits(is_byte(x_type) ? Limits(x_type) : Limits(op, "x", o.x_min, o.x_max)),
        dynamic(!is_byte(x_type) && !x_scale.data) {
    STD_TORCH_CHECK(activation <= Activation::hardswish, op,
                    ": activation must be none, relu, relu6 or hardswish on CUDA, got ", o.activation);
    y_type = cuda_element(op, "dtype", dtype);
    STD_TORCH_CHECK(is_byte(element_of(w.scalar_type())), op, ": weight must be int8 or uint8, got ",
                    dtype_name(w.scalar_type()));
    const int64_t depth = w.size(0) ? w.numel() / w.size(0) : 0;
    STD_TORCH_CHECK(depth <= kMaxDepth, op, ": weight must have at most ", kMaxDepth,
                    " inputs for an exact int32 sum, got ", depth);
    STD_TORCH_CHECK(!dynamic || !x_zero.data, op, ": x_zero must be None where each row has its own, got one");
    if (is_byte(y_type)) {
      y_limits = Limits(op, "y", o.y_min, o.y_max);
      STD_TORCH_CHECK((y_limits.low < 0) == (y_type == Element::s8), op, ": y_min must be ",
                      y_type == Element::s8 ? "negative for int8" : "at least 0 for uint8", ", got ", o.y_min);
      STD_TORCH_CHECK(y_scale.data, op, ": y_scale must be given for ", dtype_name(dtype), ", got none");
    }
    const std::pair<const char*, Optional> all[] = {{"weight", w},
                                                    {"scale", scale_},
                                                    {"x_zero", x_zero_},
                                                    {"weight_zero", weight_zero_},
                                                    {"bias", bias_},
                                                    {"x_scale", o.x_scale},
                                                    {"residual", o.residual},
                                                    {"residual_scale", o.residual_scale},
                                                    {"residual_zero", o.residual_zero},
                                                    {"y_scale", o.y_scale},
                                                    {"y_zero", o.y_zero}};
    for (const auto& [name, tensor] : all) check_device(op, name, tensor, x);
  }

  ScalarType x_bytes() const { return x_limits.low < 0 ? ScalarType::Char : ScalarType::Byte; }
};

// x as bytes: as it is, or quantised on one grid.
Tensor as_bytes(const Given& g, cudaStream_t stream) {
  if (is_byte(g.x_type)) return g.x;
  const Tensor dense = is_dense(g.x) ? g.x : made_contiguous(g.x);
  Tensor q = empty_like(dense, g.x_bytes());
  const affine::Problem problem{
      {1, 1, dense.numel()}, g.x_scale.data,
      g.x_zero.data,         g.x_zero.data ? affine::ZeroPointKind::int32 : affine::ZeroPointKind::none,
      float(g.x_limits.low), float(g.x_limits.high)};
  affine::cuda::quantize(float_type(g.x_type), problem, dense.const_data_ptr(),
                         static_cast<uint8_t*>(q.mutable_data_ptr()), stream);
  return q;
}

bool is_depthwise(const WeightShape& s) { return s.groups > 1 && s.out_channels == 1 && s.in_channels == 1; }

// Tiles as given, or made for this call: dense then, whatever the weight holds, since to look would be to wait.
struct TilesOf {
  cuda::CudaTiling tiling;
  Tensor bytes;
  const uint8_t* data() const { return static_cast<const uint8_t*>(bytes.const_data_ptr()); }

  TilesOf(const char* op, const Given& g, const Optional& tiles, const WeightShape& shape, cudaStream_t stream)
      : tiling(TileKind::dense, 1, shape), bytes(g.weight) {
    if (tiles) {
      check_device(op, "tiles", tiles, g.x);
      STD_TORCH_CHECK(tiles->scalar_type() == ScalarType::Byte && tiles->is_contiguous(), op,
                      ": tiles must be a contiguous uint8 tensor");
      for (const TileKind kind : {TileKind::dense, TileKind::sparse24}) {
        const cuda::CudaTiling candidate(kind, 1, shape);
        if (candidate.size != tiles->numel()) continue;
        tiling = candidate, bytes = *tiles;
        return;
      }
      STD_TORCH_CHECK(false, op, ": tiles must be made by int8_tiles for this weight, on this device");
    }
    bytes = empty_on(g.x, {tiling.size}, ScalarType::Byte);
    cuda::pack_tiles(tiling, static_cast<const int8_t*>(g.weight.const_data_ptr()),
                     static_cast<uint8_t*>(bytes.mutable_data_ptr()), stream);
  }
};

int multiprocessors(const Tensor& x) {
  int count = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, x.get_device_index()));
  return count;
}

// y, for prepared rows: of bytes, with what finish knows of their grids.
void product(const char* op, const Given& g, const Options& o, const Optional& tiles, const WeightShape& shape,
             const cuda::Rows& rows, cuda::Finish finish, Tensor& y, cudaStream_t stream) {
  const int64_t outputs = g.weight.size(0);
  Tensor added = y;
  if (o.residual) {
    bool same = o.residual->dim() == y.dim();
    for (int64_t d = 0; same && d < y.dim(); ++d) same = o.residual->size(d) == y.size(d);
    STD_TORCH_CHECK(same, op, ": residual must have the shape of y, ", shape_of(y), ", got ", shape_of(*o.residual));
    added = laid_out_as(*o.residual, y);
    finish.residual_type = cuda_element(op, "residual", added.scalar_type());
    STD_TORCH_CHECK(!is_byte(finish.residual_type) || g.residual_scale.data, op, ": residual_scale must be given for ",
                    dtype_name(added.scalar_type()), ", got none");
    finish.residual = added.const_data_ptr();
    finish.residual_stride = outputs;
    finish.residual_scale = g.residual_scale.data;
    finish.residual_zero = g.residual_zero.data;
  }
  if (y.numel() == 0) return;
  finish.scale = g.scale.data, finish.x_scale = g.x_scale.data, finish.x_zero = g.x_zero.data;
  finish.bias = g.bias.data;
  finish.activation = g.activation;
  finish.output_type = g.y_type, finish.output = y.mutable_data_ptr(), finish.output_stride = outputs;
  finish.y_scale = g.y_scale.data, finish.y_zero = g.y_zero.data;
  finish.output_low = float(g.y_limits.low), finish.output_high = float(g.y_limits.high);
  const bool is_signed = g.weight.scalar_type() == ScalarType::Char;
  const int64_t inputs = shape.taps * shape.in_channels;
  if (!is_signed || g.weight_zero.data || is_depthwise(shape) || inputs == 0 || shape.groups > 65535) {
    cuda::PlainWeight plain{
        static_cast<const uint8_t*>(g.weight.const_data_ptr()), is_signed, {inputs, 1, shape.taps}, g.weight_zero.data};
    const cuda::CudaTiling tiling(TileKind::depthwise, 1, shape);
    if (tiles && is_depthwise(shape)) {
      check_device(op, "tiles", tiles, g.x);
      STD_TORCH_CHECK(tiles->numel() == tiling.size && tiles->is_contiguous(), op,
                      ": tiles must be made by int8_tiles for this weight, on this device");
      plain.data = static_cast<const uint8_t*>(tiles->const_data_ptr()) + tiling.data_at;
      plain.strides[0] = 1, plain.strides[1] = shape.in_channels * outputs, plain.strides[2] = outputs;
    }
    cuda::direct_product(shape, plain, rows, finish, stream);
  } else {
    const TilesOf packed(op, g, tiles, shape, stream);
    const cuda::Cut cut = cuda::cut_product(packed.tiling, rows.count, multiprocessors(y));
    Tensor workspace = y;
    if (cut.workspace) workspace = empty_on(y, {cut.workspace}, ScalarType::Byte);
    cuda::int8_product(packed.tiling, packed.data(), rows, finish, cut,
                       cut.workspace ? workspace.mutable_data_ptr() : nullptr, stream);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// The distance of the rows of x where they can be read as they lie, else -1.
int64_t row_stride(const Tensor& x, int64_t depth) {
  if (x.is_contiguous()) return depth;
  return x.dim() == 2 && (x.stride(1) == 1 || depth == 1) && x.stride(0) >= depth ? x.stride(0) : -1;
}

Tensor int8_linear_cuda(const Tensor& x, const Tensor& weight, const Tensor& scale, Optional x_zero,
                        Optional weight_zero, Optional bias, Optional tiles, Optional x_scale, int64_t x_min,
                        int64_t x_max, std::string activation, Optional residual, Optional residual_scale,
                        Optional residual_zero, std::optional<ScalarType> dtype, Optional y_scale, Optional y_zero,
                        int64_t y_min, int64_t y_max) {
  const char* op = "int8_linear";
  STD_TORCH_CHECK(weight.dim() == 2 && x.dim() >= 1 && x.size(x.dim() - 1) == weight.size(1), op,
                  ": x must be [..., K] and weight [N, K], got ", shape_of(x), " and ", shape_of(weight));
  const Options options{x_scale,       x_min, x_max,   activation, residual, residual_scale,
                        residual_zero, dtype, y_scale, y_zero,     y_min,    y_max};
  const Given g(op, x, weight, scale, x_zero, weight_zero, bias, options);
  const OnDevice device(x);
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  const int64_t depth = weight.size(1);
  shape.back() = weight.size(0);
  int64_t count = 1;
  for (size_t d = 0; d + 1 < shape.size(); ++d) count *= shape[d];
  Tensor y = empty_on(x, shape, g.dtype);
  cuda::Rows rows;
  cuda::Finish finish;
  rows.count = count;
  rows.zero = g.x_zero.data;
  Tensor source = g.dynamic ? x : as_bytes(g, device.stream());
  if (row_stride(source, depth) < 0) source = made_contiguous(source);
  rows.stride = row_stride(source, depth);
  Tensor q = source, row_scale = source, row_zero = source;
  if (g.dynamic) {
    const int64_t pitch = cuda::rounded_up(std::max<int64_t>(depth, 1), 16);
    q = empty_on(x, {count, pitch}, g.x_bytes());
    row_scale = empty_on(x, {count}, ScalarType::Float);
    row_zero = empty_on(x, {count}, ScalarType::Int);
    finish.row_scale = static_cast<const float*>(row_scale.const_data_ptr());
    if (g.x_limits.low >= 0) finish.row_zero = static_cast<const int32_t*>(row_zero.const_data_ptr());
    cuda::quantize_rows(
        {source.const_data_ptr(), g.x_type, count, depth, rows.stride, g.x_limits.low, g.x_limits.high,
         static_cast<uint8_t*>(q.mutable_data_ptr()), pitch, static_cast<float*>(row_scale.mutable_data_ptr()),
         finish.row_zero ? static_cast<int32_t*>(row_zero.mutable_data_ptr()) : nullptr},
        device.stream());
    rows.stride = pitch;
  }
  rows.data = q.const_data_ptr();
  rows.is_signed = q.scalar_type() == ScalarType::Char;
  product(op, g, options, tiles, {1, weight.size(0), 1, depth}, rows, finish, y, device.stream());
  return y;
}

Tensor channels_last(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype) {
  return torch::stable::empty(shape, dtype, std::nullopt, like.device(), std::nullopt,
                              torch::headeronly::MemoryFormat::ChannelsLast);
}

Tensor int8_conv2d_cuda(const Tensor& x, const Tensor& weight, const Tensor& scale, Optional x_zero,
                        Optional weight_zero, Optional bias, std::vector<int64_t> stride, std::vector<int64_t> padding,
                        std::vector<int64_t> dilation, int64_t groups, Optional tiles, Optional x_scale, int64_t x_min,
                        int64_t x_max, std::string activation, Optional residual, Optional residual_scale,
                        Optional residual_zero, std::optional<ScalarType> dtype, Optional y_scale, Optional y_zero,
                        int64_t y_min, int64_t y_max) {
  const char* op = "int8_conv2d";
  constexpr int64_t most = int64_t{1} << 30;  // coordinates are int32
  STD_TORCH_CHECK(x.dim() == 4 && weight.dim() == 4 && groups >= 1 && weight.size(0) % groups == 0 &&
                      x.size(1) % groups == 0 && x.size(1) / groups == weight.size(1),
                  op,
                  ": x must be [N, C, H, W] and weight [O, C / groups, kH, kW] with O a multiple of groups = ", groups,
                  ", got ", shape_of(x), " and ", shape_of(weight));
  STD_TORCH_CHECK(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2, op,
                  ": stride, padding and dilation must have two values each");
  const Options options{x_scale,       x_min, x_max,   activation, residual, residual_scale,
                        residual_zero, dtype, y_scale, y_zero,     y_min,    y_max};
  const Given g(op, x, weight, scale, x_zero, weight_zero, bias, options);
  STD_TORCH_CHECK(!g.dynamic, op, ": x_scale must be given for x of ", dtype_name(x.scalar_type()), ", got none");
  int64_t size[2];
  for (int d = 0; d < 2; ++d) {
    STD_TORCH_CHECK(stride[d] >= 1 && padding[d] >= 0 && dilation[d] >= 1 && stride[d] < most && padding[d] < most &&
                        dilation[d] < most && x.size(2 + d) < most && x.size(2 + d) + 2 * padding[d] < most,
                    op, ": stride and dilation must be at least 1, padding at least 0, a padded x less than 2^30");
    const int64_t free = x.size(2 + d) + 2 * padding[d] - dilation[d] * (weight.size(2 + d) - 1) - 1;
    STD_TORCH_CHECK(free >= 0, op, ": x must be at least as large as the kernel, got ", shape_of(x), " for weight ",
                    shape_of(weight));
    size[d] = free / stride[d] + 1;
  }
  const OnDevice device(x);
  Tensor y = channels_last(x, {x.size(0), weight.size(0), size[0], size[1]}, g.dtype);
  Tensor source = as_bytes(g, device.stream());
  const int64_t pixel = x.size(1), line = x.size(3) * pixel, strides[] = {x.size(2) * line, 1, line, pixel};
  bool in_place = true;  // what channels_last would be, whatever the strides of dimensions of one
  for (int d = 0; d < 4; ++d) in_place = in_place && (source.size(d) == 1 || source.stride(d) == strides[d]);
  if (!in_place) {
    Tensor copy = channels_last(x, {x.sizes().begin(), x.sizes().end()}, source.scalar_type());
    torch::stable::copy_(copy, source);
    source = copy;
  }
  ConvShape c;
  c.batch = x.size(0), c.height = x.size(2), c.width = x.size(3);
  c.out_height = size[0], c.out_width = size[1];
  c.kernel_height = weight.size(2), c.kernel_width = weight.size(3);
  c.stride_height = stride[0], c.stride_width = stride[1];
  c.pad_top = padding[0], c.pad_left = padding[1];
  c.dilation_height = dilation[0], c.dilation_width = dilation[1];
  cuda::Rows rows;
  rows.data = source.const_data_ptr();
  rows.is_signed = source.scalar_type() == ScalarType::Char;
  rows.stride = pixel;
  rows.count = x.size(0) * size[0] * size[1];
  rows.conv = &c;
  rows.zero = g.x_zero.data;
  const WeightShape shape{groups, weight.size(0) / groups, weight.size(2) * weight.size(3), weight.size(1)};
  product(op, g, options, tiles, shape, rows, {}, y, device.stream());
  return y;
}

// Waits for the device where it is to find out whether the weight is 2:4.
Tensor int8_tiles_cuda(const Tensor& weight, int64_t groups, std::string kind) {
  const char* op = "int8_tiles";
  STD_TORCH_CHECK(kind == "auto" || kind == "dense" || kind == "2:4", op, ": kind must be auto, dense or 2:4, got ",
                  kind);
  STD_TORCH_CHECK(
      weight.scalar_type() == ScalarType::Char && (weight.dim() == 2 || weight.dim() == 4) && weight.numel() > 0 &&
          groups >= 1 && weight.size(0) % groups == 0,
      "int8_tiles: weight must be int8 [N, K] or [O, I, kH, kW], not empty, with rows a multiple of groups = ", groups,
      ", got ", dtype_name(weight.scalar_type()), " ", shape_of(weight));
  const OnDevice device(weight);
  const Tensor dense = made_contiguous(weight);
  const auto* from = static_cast<const int8_t*>(dense.const_data_ptr());
  const int64_t taps = weight.dim() == 4 ? weight.size(2) * weight.size(3) : 1;
  const WeightShape shape{groups, weight.size(0) / groups, taps, weight.size(1)};
  TileKind chosen = is_depthwise(shape) ? TileKind::depthwise : TileKind::dense;
  if (chosen == TileKind::dense && kind != "dense") {
    const ToPack24 o(dense);
    Tensor values = o.values, indices = o.indices;
    FaultWord fault(dense, device.stream());
    sparseq::cuda::pack_24(from, o.shape, static_cast<int8_t*>(values.mutable_data_ptr()),
                           static_cast<uint8_t*>(indices.mutable_data_ptr()), fault.data(), device.stream());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    if (shape.in_channels >= 4 && fault.read(o.shape).ok())
      chosen = TileKind::sparse24;
    else if (kind == "2:4")
      throw std::invalid_argument("weight must hold at most 2 non-zeros in every 4 neighbouring inputs, and 4 inputs");
  }
  const cuda::CudaTiling tiling(chosen, 1, shape);
  Tensor tiles = empty_on(weight, {tiling.size}, ScalarType::Byte);
  cuda::pack_tiles(tiling, from, static_cast<uint8_t*>(tiles.mutable_data_ptr()), device.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return tiles;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseq, CUDA, m) {
  m.impl("int8_linear", TORCH_BOX(&int8_linear_cuda));
  m.impl("int8_conv2d", TORCH_BOX(&int8_conv2d_cuda));
  m.impl("int8_tiles", TORCH_BOX(&int8_tiles_cuda));
}

}  // namespace sparseq::gemm
