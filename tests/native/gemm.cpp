// Every ISA's kernels against an int64 reference, bit for bit. VNNI runs through SIMDe, AMX's tiles in plain C++.
#include "../../csrc/gemm/gemm.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "../../csrc/gemm/winograd.h"
#include "../../csrc/sparse24/format.h"
using namespace sparseq;

static std::mt19937 rng(1);
static int failures = 0, checks = 0;
static int uniform(int a, int b) { return std::uniform_int_distribution<int>(a, b)(rng); }
static void expect(bool ok, const char* what, const char* isa, std::vector<int64_t> where) {
  ++checks;
  if (ok) return;
  if (++failures > 20) return;
  std::printf("FAIL %s [%s]", what, isa);
  for (auto v : where) std::printf(" %lld", static_cast<long long>(v));
  std::printf("\n");
}
static const std::vector<const Kernels*>& all() {
  static const std::vector<const Kernels*> k = {&kernels_scalar(), &kernels_avx2(), &kernels_avx_vnni(),
                                                &kernels_avx512_vnni(), &kernels_amx_int8()};
  return k;
}
static int8_t weight_value(int fill) {
  switch (fill) {
    case 0: return static_cast<int8_t>(uniform(-128, 127));
    case 1: return uniform(0, 1) ? 127 : -128;
    case 2: return 127;
    case 3: return -128;
    case 4:
      return static_cast<int8_t>(std::lrint(std::fmax(-127., std::fmin(127., std::normal_distribution<>(0, 28)(rng)))));
    case 5: return static_cast<int8_t>(uniform(-3, 3));
    case 6: return uniform(0, 1) ? 64 : -64;
    default: return static_cast<int8_t>(uniform(60, 68) * (uniform(0, 1) ? 1 : -1));
  }
}
static uint8_t act_value(int fill) {
  switch (fill % 3) {
    case 0: return static_cast<uint8_t>(uniform(0, 255));
    case 1: return 255;
    default: return uniform(0, 1) ? 255 : 0;
  }
}
struct Weights {
  std::vector<int8_t> dense, values;
  std::vector<uint8_t> indices;
};
static Weights make(const WeightShape& s, int fill, bool sparse) {
  Weights w;
  const int64_t rows = s.groups * s.out_channels * s.taps;
  w.dense.resize(static_cast<std::size_t>(rows * s.in_channels));
  for (auto& v : w.dense) v = weight_value(fill);
  if (sparse) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < s.in_channels; c += 4) {
        int keep = uniform(0, 3), keep2 = uniform(0, 3);
        for (int64_t i = 0; i < 4 && c + i < s.in_channels; ++i)
          if (i != keep && i != keep2) w.dense[static_cast<std::size_t>(r * s.in_channels + c + i)] = 0;
      }
    w.values.resize(static_cast<std::size_t>(rows * values_24(s.in_channels)));
    w.indices.resize(static_cast<std::size_t>(rows * index_bytes_24(s.in_channels)));
    const Shape24 shape{rows, s.in_channels};
    expect(pack_24(w.dense.data(), shape, w.values.data(), w.indices.data(), 0, rows).ok(), "pack_24", "",
           {rows, s.in_channels});
    std::vector<int8_t> back(w.dense.size(), 1);
    expect(unpack_24(w.values.data(), w.indices.data(), shape, back.data(), 0, rows).ok() && back == w.dense,
           "unpack_24", "", {rows, s.in_channels});
  }
  return w;
}
static PackedWeight pack(const Weights& w, const WeightShape& s, bool sparse, const Layout& l, CacheSizes caches) {
  PackedWeight packed = sparse ? pack_sparse24(w.values.data(), w.indices.data(), s, l, caches)
                               : pack_dense(w.dense.data(), s, l, caches);
  winograd::keep(w.dense.data(), packed);
  return packed;
}
// The plan that is taken, and all other ways that there are.
static std::vector<WorkPlan> plans(const PackedWeight& w, const ConvShape* c, int64_t rows, CacheSizes caches) {
  std::vector<WorkPlan> found{plan_work(w, c, rows, caches, 2)};
  if (w.layout.tile_inputs > 0) {
    const int64_t batch = c ? c->batch : 1, lines = c ? c->out_height : rows;
    WorkPlan any;  // blocks as they come, of few rows, too
    any.rows = rows, any.amx = uniform(1, static_cast<int>(batch));
    any.row_block = c ? uniform(1, static_cast<int>(lines)) : 32 * uniform(1, static_cast<int>(lines + 31) / 32);
    any.row_blocks = (batch + any.amx - 1) / any.amx * ((lines + any.row_block - 1) / any.row_block);
    any.items = any.row_blocks * w.shape.groups * w.channel_groups();
    found.push_back(any);
    return found;
  }
  const bool steps = c && c->stride_height == 1 && c->stride_width == 1;
  if (!steps || c->kernel_height != 3 || c->dilation_height != 1 || c->dilation_width != 1) return found;
  for (int t = 2; t <= w.winograd_most; t += 2) found.push_back(winograd::plan_tiles(t, w, *c, caches, 2));
  return found;
}
static float ref_epilogue(const Epilogue& e, int64_t acc, int64_t m, int64_t n, float res) {
  volatile float y = static_cast<float>(static_cast<int32_t>(acc)) * e.multiplier[n];
  if (e.row_scale) y = y * e.row_scale[m];
  if (e.bias) y = y + e.bias[n];
  if (e.residual_type != Element::none) y = y + res;
  switch (e.activation) {
    case Activation::none: break;
    case Activation::relu: y = y < 0 ? 0.f : y; break;
    case Activation::relu6: y = y < 0 ? 0.f : y > 6 ? 6.f : y; break;
    case Activation::hardswish: {
      volatile float t = y + 3.f;
      t = t < 0 ? 0.f : t > 6 ? 6.f : t;
      y = y * t;
      y = y / 6.f;
      break;
    }
    default: break;  // tests/ops/test_int8_fused.py has them all
  }
  return y;
}
static uint16_t bf16(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// acc is the true sum over (a - zero) * w.
static void check_outputs(const Kernels& k, const PackedWeight& pw, const Input& in, int64_t M, int64_t N, int zero,
                          const std::vector<int64_t>& truth, int variant, std::vector<int64_t> where, CacheSizes caches,
                          const Depthwise* dw = nullptr) {
  std::vector<float> mult(N), bias(N), rscale(M);
  std::vector<int32_t> rzero(M, zero);
  for (auto& v : mult) v = std::ldexp(static_cast<float>(uniform(1, 1000)), -18);
  for (auto& v : bias) v = static_cast<float>(uniform(-1000, 1000)) / 300;
  for (auto& v : rscale) v = static_cast<float>(uniform(1, 1000)) / 300;
  Epilogue e;
  e.multiplier = mult.data();
  e.zero = zero;
  if (variant & 1) e.bias = bias.data();
  e.activation = static_cast<Activation>(variant / 2 % 4);
  if (variant / 8 % 2) {
    e.row_scale = rscale.data();
    e.row_zero = rzero.data();
    e.zero = 99;
  }
  const Element types[] = {Element::f32, Element::bf16, Element::u8, Element::s8};
  e.output_type = types[variant / 16 % 4];
  const Element rtypes[] = {Element::none, Element::f32, Element::bf16, Element::u8, Element::s8};
  e.residual_type = rtypes[variant / 64 % 5];
  const int64_t stride = N + uniform(0, 3);
  const std::size_t cells = static_cast<std::size_t>(M * stride);
  std::vector<float> rf(cells);
  std::vector<uint16_t> rb(cells);
  std::vector<uint8_t> r8(cells);
  std::vector<float> res(cells);
  e.residual_scale = 0.05f;
  e.residual_zero_point = 7;
  e.residual_stride = stride;
  for (std::size_t i = 0; i < cells; ++i) {
    rf[i] = static_cast<float>(uniform(-99, 99)) / 7;
    rb[i] = bf16(rf[i]);
    r8[i] = static_cast<uint8_t>(uniform(0, 255));
    switch (e.residual_type) {
      case Element::f32: res[i] = rf[i]; break;
      case Element::bf16: {
        uint32_t u = uint32_t{rb[i]} << 16;
        std::memcpy(&res[i], &u, 4);
        break;
      }
      case Element::u8: res[i] = static_cast<float>(r8[i] - 7) * 0.05f; break;
      case Element::s8: res[i] = static_cast<float>(static_cast<int8_t>(r8[i]) - 7) * 0.05f; break;
      default: break;
    }
  }
  e.residual = e.residual_type == Element::f32    ? static_cast<void*>(rf.data())
               : e.residual_type == Element::bf16 ? static_cast<void*>(rb.data())
                                                  : r8.data();
  e.output_scale = 0.037f;
  e.output_zero_point = e.output_type == Element::u8 ? 100 : 3;
  e.output_low = e.output_type == Element::u8 ? 0 : -127;
  e.output_high = e.output_type == Element::u8 ? 255 : 127;
  const int bytes = e.output_type == Element::f32 ? 4 : e.output_type == Element::bf16 ? 2 : 1;
  std::vector<uint8_t> out(cells * bytes + 8, 0xcd), want(cells * bytes + 8, 0xcd);
  e.output = out.data();
  e.output_stride = stride;
  if (dw) {
    const int64_t cut = uniform(0, static_cast<int>(M));
    k.depthwise(*dw, in, e, 0, cut);
    k.depthwise(*dw, in, e, cut, M);
  }
  for (int64_t m = 0; m < M; ++m)
    for (int64_t n = 0; n < N; ++n) {
      const float y = ref_epilogue(e, truth[m * N + n], m, n, res[m * stride + n]);
      uint8_t* to = want.data() + (m * stride + n) * bytes;
      if (bytes == 4)
        std::memcpy(to, &y, 4);
      else if (bytes == 2) {
        uint16_t b = bf16(y);
        std::memcpy(to, &b, 2);
      } else {
        double q = std::nearbyint(y / e.output_scale) + e.output_zero_point;
        q = std::fmin(std::fmax(q, e.output_low), e.output_high);
        *to = static_cast<uint8_t>(static_cast<int>(q));
      }
    }
  where.push_back(variant);
  if (dw) return expect(out == want, "depthwise", k.name, where);
  where.push_back(0);
  for (const WorkPlan& plan : plans(pw, in.conv, M, caches)) {
    std::fill(out.begin(), out.end(), 0xcd);
    const int64_t cut = uniform(0, static_cast<int>(plan.items));
    k.run(pw, in, e, plan, 0, cut);
    k.run(pw, in, e, plan, cut, plan.items);
    where.back() = plan.winograd;
    expect(out == want, pw.kind == WeightKind::dense ? "dense" : "sparse", k.name, where);
  }
  if (pw.layout.tile_inputs == 0 || M == 0) return;
  // Some lines of an image, or rows.
  const int64_t lines = in.conv ? in.conv->out_height : M, line = in.conv ? in.conv->out_width : 1;
  const int64_t image = in.conv ? uniform(0, static_cast<int>(in.conv->batch) - 1) : 0;
  const int64_t first = uniform(0, static_cast<int>(lines) - 1);
  WorkPlan part;
  part.amx = 1, part.row_blocks = 1, part.items = pw.shape.groups * pw.channel_groups();
  part.row_block = uniform(1, static_cast<int>(lines - first));
  part.start = (image * lines + first) * line, part.rows = part.start + part.row_block * line;
  std::fill(out.begin(), out.end(), 0xcd);
  k.run(pw, in, e, part, 0, part.items);
  std::fill(want.begin(), want.begin() + part.start * stride * bytes, 0xcd);
  std::fill(want.begin() + part.rows * stride * bytes, want.end(), 0xcd);
  expect(out == want, "a part", k.name, where);
}

static void linear(int64_t M, int64_t N, int64_t K, int fill, bool sparse, int variant, CacheSizes caches) {
  WeightShape s{1, N, 1, K};
  const Weights w = make(s, fill, sparse);
  const int64_t stride = uniform(0, 1) ? K : (K + 15) / 16 * 16;
  std::vector<uint8_t> a(static_cast<std::size_t>(M * stride) + kInputSlack);
  for (auto& v : a) v = act_value(fill + variant);
  const int zero = uniform(0, 1) ? 128 : uniform(0, 255);
  std::vector<int64_t> truth(static_cast<std::size_t>(M * N));
  for (int64_t m = 0; m < M; ++m)
    for (int64_t n = 0; n < N; ++n) {
      int64_t sum = 0;
      for (int64_t c = 0; c < K; ++c) sum += (int64_t{a[m * stride + c]} - zero) * w.dense[n * K + c];
      truth[m * N + n] = sum;
    }
  Input in;
  in.data = a.data();
  in.stride = stride;
  for (auto* k : all())
    check_outputs(*k, pack(w, s, sparse, k->layout, caches), in, M, N, zero, truth, variant, {M, N, K, fill}, caches);
}

static void conv(ConvShape c, int64_t groups, int64_t cin, int64_t cout, int fill, bool sparse, int variant, bool dw,
                 CacheSizes caches) {
  WeightShape s{groups, cout, c.kernel_height * c.kernel_width, cin};  // per group
  const Weights w = make(s, fill, sparse);
  const int64_t C = groups * cin, N = groups * cout, M = c.batch * c.out_height * c.out_width;
  std::vector<uint8_t> a(static_cast<std::size_t>(c.batch * c.height * c.width * C) + kInputSlack);
  for (auto& v : a) v = act_value(fill + variant);
  const int zero = uniform(0, 255);
  std::vector<uint8_t> pad(static_cast<std::size_t>(C + kInputSlack), static_cast<uint8_t>(zero));
  std::vector<int64_t> truth(static_cast<std::size_t>(M * N));
  for (int64_t m = 0; m < M; ++m)
    for (int64_t n = 0; n < N; ++n) {
      const int64_t x = m % c.out_width, y = m / c.out_width % c.out_height, b = m / c.out_width / c.out_height,
                    g = n / cout;
      int64_t sum = 0;
      for (int64_t i = 0; i < c.kernel_height; ++i)
        for (int64_t j = 0; j < c.kernel_width; ++j) {
          const int64_t iy = y * c.stride_height - c.pad_top + i * c.dilation_height,
                        ix = x * c.stride_width - c.pad_left + j * c.dilation_width;
          if (iy < 0 || iy >= c.height || ix < 0 || ix >= c.width) continue;
          for (int64_t q = 0; q < cin; ++q)
            sum += (int64_t{a[((b * c.height + iy) * c.width + ix) * C + g * cin + q]} - zero) *
                   w.dense[(n * s.taps + i * c.kernel_width + j) * cin + q];
        }
      truth[m * N + n] = sum;
    }
  Input in;
  in.data = a.data();
  in.stride = C;
  in.conv = &c;
  in.padding = pad.data();
  std::vector<int32_t> pairs, sums;
  Depthwise d;
  d.shape = c;
  d.channels = C;
  if (dw) {
    pack_depthwise(w.dense.data(), C, s.taps, pairs, sums);
    d.pairs = pairs.data();
    d.weight_sum = sums.data();
  }
  for (auto* k : all())
    check_outputs(*k, pack(w, s, sparse, k->layout, caches), in, M, N, zero, truth, variant,
                  {groups, cin, cout, c.kernel_height, c.stride_height, fill}, caches, dw ? &d : nullptr);
}

static void rows() {
  for (int t = 0; t < 400; ++t) {
    const int64_t M = uniform(1, 5), K = uniform(1, 70), stride = (K + 15) / 16 * 16;
    std::vector<float> x(static_cast<std::size_t>(M * K));
    for (auto& v : x) {
      v = static_cast<float>(std::normal_distribution<>(0.3, 2)(rng));
      if (uniform(0, 50) == 0) v = uniform(0, 1) ? NAN : 1e30f;
      if (t % 7 == 0) v = 0;
      if (t % 5 == 0) v = static_cast<float>(uniform(-9, 9)) * 0.5f * 0.1f;
    }
    std::vector<uint8_t> first;
    std::vector<float> fs;
    std::vector<int32_t> fz;
    for (auto* k : all()) {
      std::vector<uint8_t> out(static_cast<std::size_t>(M * stride), 7);
      std::vector<float> rs(M, 0.1f);
      std::vector<int32_t> rz(M, 0);
      RowQuantizer q;
      const bool dynamic = t % 4 >= 2, is_signed = t % 2 == 1;
      q.input = x.data();
      q.columns = K;
      q.input_stride = K;
      q.dynamic = dynamic;
      q.scale = 0.1f;
      q.zero_point = is_signed ? -5 : 31;
      q.low = is_signed ? -128 : 0;
      q.high = is_signed ? 127 : 255;
      q.output = out.data();
      q.output_stride = stride;
      q.row_scale = rs.data();
      q.row_zero = rz.data();
      k->quantize_rows(q, 0, M);
      bool ok = true;
      for (int64_t m = 0; m < M; ++m)
        for (int64_t c = 0; c < K; ++c) {
          const int shift = is_signed ? 128 : 0, lo = is_signed && dynamic ? -127 : q.low, hi = q.high;
          const int z = rz[m] - shift;
          const float v = x[m * K + c];
          double want = std::isnan(v) ? z : std::fmin(std::fmax(std::nearbyint(v / rs[m]) + z, lo), hi);
          ok = ok && out[m * stride + c] == static_cast<uint8_t>(static_cast<int>(want) + shift);
        }
      expect(ok, "quantize_rows", k->name, {t, M, K});
      if (k == all()[0]) {
        first = out;
        fs = rs;
        fz = rz;
      }
      expect(first == out && fs == rs && fz == rz, "quantize_rows ISAs equal", k->name, {t, M, K});
    }
  }
}

static void fuzz24() {
  for (int t = 0; t < 20000; ++t) {
    const Shape24 shape{uniform(0, 3), uniform(0, 20), uniform(1, 3)};
    const int64_t rows = shape.rows();
    std::vector<int8_t> v(static_cast<std::size_t>(rows * values_24(shape.columns)));
    std::vector<uint8_t> x(static_cast<std::size_t>(rows * index_bytes_24(shape.columns)));
    for (auto& b : v) b = static_cast<int8_t>(uniform(-128, 127));
    for (auto& b : x) b = static_cast<uint8_t>(uniform(0, 3) ? 0x44 : uniform(0, 255));
    std::vector<int8_t> out(static_cast<std::size_t>(rows * shape.columns), 9);
    const Fault24 fault = unpack_24(v.data(), x.data(), shape, out.data(), 0, rows);
    if (fault.ok()) {
      std::vector<int8_t> v2(v.size());
      std::vector<uint8_t> x2(x.size());
      std::vector<int8_t> again(out.size());
      expect(pack_24(out.data(), shape, v2.data(), x2.data(), 0, rows).ok(), "fuzz pack", "", {t});
      unpack_24(v2.data(), x2.data(), shape, again.data(), 0, rows);
      expect(again == out, "fuzz round trip", "", {t});
    } else
      for (auto b : out) expect(b == 9, "fuzz untouched", describe(fault.error), {t});
  }
  const float w[8] = {1, -3, 3, 3, NAN, 0, -0.f, 2};
  uint32_t bits[8];
  std::memcpy(bits, w, sizeof w);
  uint8_t m[8];
  mask_24(bits, uint32_t{0x7f800000}, m, {1, 8}, 0, 1);
  const uint8_t want[8] = {0, 1, 1, 0, 0, 1, 0, 1};
  expect(std::memcmp(m, want, 8) == 0, "mask_24", "", {});
}

int main() {
  const CacheSizes caches[] = {{32 * 1024, 512 * 1024}, {2048, 4096}};
  for (int sparse = 0; sparse < 2; ++sparse) {
    int variant = 0;
    for (int64_t K = 1; K <= 301; K += 2)
      for (int fill = 0; fill < 8; ++fill, ++variant)
        linear(uniform(1, 20), uniform(1, 70), K, fill, sparse, variant % 320, caches[variant / 3 % 2]);
    for (int64_t N = 1; N <= 70; ++N)
      linear(N % 20 + 1, N, 64, static_cast<int>(N % 8), sparse, static_cast<int>(N * 37 % 320), caches[0]);
    for (int M = 33; M <= 64; ++M)  // amx_kernel.h takes all of these together where weights are 2:4
      linear(M, uniform(1, 70), uniform(16, 300), M % 8, sparse, M * 37 % 320, caches[M % 2]);
    linear(70, 40, 2500, 0, sparse, 0, caches[0]);
    linear(300, 20, 70, 4, sparse, 0, caches[0]);
    linear(2, 17, 4609, 2, sparse, 0, caches[0]);
    for (int t = 0; t < 72; ++t) {
      const bool wide = t >= 60;  // read line by line, without a frame (amx.h)
      ConvShape c;
      c.batch = uniform(1, 2);
      c.height = uniform(3, 9);
      c.width = wide ? uniform(36, 50) : uniform(3, 9);
      c.kernel_height = uniform(1, 3);
      c.kernel_width = uniform(1, 3);
      c.stride_height = uniform(1, 2);
      c.stride_width = uniform(1, 2);
      c.pad_top = wide ? 0 : uniform(0, 2);
      c.pad_left = wide ? 0 : uniform(0, 2);
      c.dilation_height = uniform(1, 2);
      c.dilation_width = uniform(1, 2);
      const int64_t h = c.height + 2 * c.pad_top - c.dilation_height * (c.kernel_height - 1) - 1,
                    x = c.width + 2 * c.pad_left - c.dilation_width * (c.kernel_width - 1) - 1;
      if (h < 0 || x < 0) continue;
      c.out_height = h / c.stride_height + 1;
      c.out_width = x / c.stride_width + 1;
      conv(c, uniform(1, 3), uniform(1, 40), uniform(1, 30), t % 8, sparse, t * 53 % 320, false, caches[t % 2]);
      if (!sparse) conv(c, uniform(1, 90), 1, 1, t % 8, false, t * 53 % 320, true, caches[0]);
      c.kernel_height = c.kernel_width = 3;  // by Winograd's filtering, where there is room
      c.stride_height = c.stride_width = c.dilation_height = c.dilation_width = 1;
      c.out_height = c.height + 2 * c.pad_top - 2;
      c.out_width = c.width + 2 * c.pad_left - 2;
      conv(c, 1, 16 * uniform(1, 3), uniform(1, 40), t % 8, sparse, t * 53 % 320, false, caches[t % 2]);
    }
  }
  rows();
  fuzz24();
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures != 0;
}
