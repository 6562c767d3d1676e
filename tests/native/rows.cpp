// The kernels of csrc/network/rows.h on every ISA: against plain loops, and bit for bit against the scalar ones.
#include "../../csrc/network/rows.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>
using namespace sparseq;
using namespace sparseq::network;

static std::mt19937 rng(1);
static int failures = 0, checks = 0;
static int uniform(int a, int b) { return std::uniform_int_distribution<int>(a, b)(rng); }
static const Kernels* const all[] = {&kernels_scalar(), &kernels_avx2(), &kernels_avx512()};
static const char* const names[] = {"scalar", "avx2", "avx512"};

// A value in memory of its own: `slack` bytes behind it may be read, nothing before.
struct Value {
  std::vector<uint8_t> bytes;
  View view;
};
static Value value(int64_t n, int64_t h, int64_t w, int64_t c, bool odd) {
  Value v;
  v.view.images = n, v.view.height = h, v.view.width = w, v.view.channels = c;
  v.view.pixel = uniform(0, 1) ? c : c + uniform(1, 40);
  v.view.type = uniform(0, 1) ? Element::u8 : Element::f32;
  v.view.scale = std::ldexp(static_cast<float>(uniform(1, 1000)), -14);
  v.view.zero = uniform(0, 255);
  const auto cells = static_cast<std::size_t>((v.view.pixels() - 1) * v.view.pixel + c);
  if (v.view.type == Element::u8) {
    v.bytes.resize(cells + 16);
    for (auto& b : v.bytes) b = static_cast<uint8_t>(uniform(0, 255));
  } else {
    std::vector<float> floats(cells + 4);
    for (auto& f : floats) {
      f = static_cast<float>(std::normal_distribution<>(0, 4)(rng));
      if (odd && uniform(0, 60) == 0) {
        const float edges[] = {NAN, INFINITY, -INFINITY, -0.0f, 0.0f, 1e-40f, 3e38f, -3e38f, 90.0f, -90.0f};
        f = edges[uniform(0, 9)];
      }
    }
    v.bytes.resize(4 * floats.size());
    std::memcpy(v.bytes.data(), floats.data(), v.bytes.size());
  }
  v.bytes.shrink_to_fit();
  v.view.data = v.bytes.data();
  return v;
}
static Target target(const View& like, int64_t channels) {
  Target t;
  t.type = uniform(0, 1) ? Element::u8 : Element::f32;
  t.pixel = uniform(0, 1) ? channels : channels + uniform(1, 40);
  t.zero = uniform(0, 255);
  t.scale = std::ldexp(static_cast<float>(uniform(1, 1000)), -13);
  if (uniform(0, 2) == 0) t.zero = like.zero, t.scale = like.scale;
  if (uniform(0, 2) == 0) t.low = uniform(0, t.zero), t.high = uniform(t.zero, 255);
  return t;
}
static float real(const View& v, int64_t pixel, int64_t c) {
  if (v.type == Element::f32) return static_cast<const float*>(v.data)[pixel * v.pixel + c];
  return static_cast<float>(static_cast<const uint8_t*>(v.data)[pixel * v.pixel + c] - v.zero) * v.scale;
}
static float act(Activation a, float y) {
  if (a == Activation::none) return y;
  y = y < 0 ? 0.0f : y;
  return a == Activation::relu6 && y > 6 ? 6.0f : y;
}

// The results of `run(kernels, target)` of `pixels` x `channels`; wanted(pixel, c) where it is defined by a loop here.
template <class Run, class Wanted>
static void check(const std::string& what, Target t, int64_t pixels, int64_t channels, bool defined, Run run,
                  Wanted wanted) {
  const int size = t.type == Element::u8 ? 1 : 4;
  std::vector<uint8_t> first;
  for (int isa = 0; isa < 3; ++isa) {
    std::vector<uint8_t> out(static_cast<std::size_t>(((pixels - 1) * t.pixel + channels) * size), 0xcd);
    t.data = out.data();
    const int64_t cut = uniform(0, static_cast<int>(pixels));
    run(*all[isa], t, 0, cut);
    run(*all[isa], t, cut, pixels);
    bool ok = true;
    for (int64_t p = 0; p < pixels; ++p)
      for (int64_t c = 0; c < (p + 1 < pixels ? t.pixel : channels); ++c) {
        uint8_t* at = out.data() + (p * t.pixel + c) * size;
        if (c >= channels) {
          for (int i = 0; i < size; ++i) ok = ok && at[i] == 0xcd;
          continue;
        }
        if (size == 4) {  // one NaN is as good as another
          float y;
          std::memcpy(&y, at, 4);
          if (std::isnan(y)) y = NAN;
          std::memcpy(at, &y, 4);
        }
        if (!defined) continue;
        const float y = wanted(p, c);
        if (size == 4) {
          float got;
          std::memcpy(&got, at, 4);
          ok = ok && (got == y || (std::isnan(got) && std::isnan(y)));
        } else {
          const double q = std::isnan(y) ? t.zero : std::nearbyint(y / t.scale) + double(t.zero);
          ok = ok && *at == static_cast<uint8_t>(std::fmin(std::fmax(q, t.low), t.high));
        }
      }
    if (isa == 0) first = out;
    ++checks;
    if ((ok && out == first) || ++failures > 20) continue;
    std::printf("FAIL %s [%s] %s: %lld x %lld\n", what.c_str(), names[isa], ok ? "unlike scalar" : "wrong",
                static_cast<long long>(pixels), static_cast<long long>(channels));
  }
}
static Activation activation() { return static_cast<Activation>(uniform(0, 2) ? uniform(0, 2) : uniform(3, 9)); }
static std::vector<float> constants(int64_t count) {
  std::vector<float> v(static_cast<std::size_t>(count));
  for (auto& f : v) f = static_cast<float>(uniform(-999, 999)) / 300;
  return v;
}
static int64_t some_channels() { return uniform(0, 1) ? uniform(1, 40) : 8 * uniform(1, 20) + uniform(0, 1); }

static void maps() {
  const int64_t channels = uniform(0, 9) ? some_channels() : 1100;
  const Value x = value(uniform(1, 2), uniform(1, 4), uniform(1, 4), channels, true);
  Map m;
  m.x = x.view;
  m.activation = activation();
  const bool scaled = uniform(0, 1);
  const auto scale = constants(channels), shift = constants(channels);
  if (scaled) m.scale = scale.data(), m.shift = shift.data();
  const Target t = target(x.view, channels);
  uint8_t table[256];
  if (!scaled && m.x.type == Element::u8 && t.type == Element::u8 && uniform(0, 3)) {
    m.y = t;
    map_bytes(m, table);
    m.bytes = table;
  }
  check(
      m.bytes ? "map_bytes" : "map", t, m.x.pixels(), channels, m.activation <= Activation::relu6,
      [&](const Kernels& k, const Target& to, int64_t begin, int64_t end) {
        m.y = to;
        k.map(m, begin, end);
      },
      [&](int64_t p, int64_t c) {
        const float y = real(m.x, p, c);
        return act(m.activation, scaled ? y * scale[c] + shift[c] : y);
      });
}

static void binaries() {
  Binary g;
  g.images = uniform(1, 3), g.height = uniform(1, 4), g.width = uniform(1, 4);
  const int64_t channels = some_channels();
  const auto operand = [&] {
    const bool one = uniform(0, 2) == 0;
    return value(uniform(0, 2) ? g.images : 1, one ? 1 : g.height, one ? 1 : g.width, channels, true);
  };
  const Value a = operand(), b = operand();
  g.a = a.view, g.b = b.view;
  g.product = uniform(0, 1);
  g.activation = activation();
  const auto at = [&](const View& v, int64_t p) {
    const int64_t plane = g.height * g.width, n = v.images == 1 ? 0 : p / plane;
    return v.height * v.width == 1 ? n : n * plane + p % plane;
  };
  check(
      "binary", target(a.view, channels), g.images * g.height * g.width, channels, g.activation <= Activation::relu6,
      [&](const Kernels& k, const Target& to, int64_t begin, int64_t end) {
        g.y = to;
        k.binary(g, begin, end);
      },
      [&](int64_t p, int64_t c) {
        const float x = real(g.a, at(g.a, p), c), y = real(g.b, at(g.b, p), c);
        return act(g.activation, g.product ? x * y : x + y);
      });
}

static void pools() {
  Pool g;
  const int64_t channels = some_channels();
  const bool great = uniform(0, 20) == 0;  // more than 256 pixels in a window
  const Value x = value(uniform(1, 2), great ? 18 : uniform(1, 9), great ? 17 : uniform(1, 9), channels, true);
  g.x = x.view;
  g.kind = static_cast<PoolKind>(uniform(0, 2));
  const auto axis = [&](int64_t size, int64_t& kernel, int64_t& stride, int64_t& pad, int64_t& dilation) {
    dilation = g.kind == PoolKind::max ? uniform(1, 2) : 1;
    do {
      kernel = great ? size : uniform(1, 3);
      pad = uniform(0, static_cast<int>(kernel / 2));
    } while (size + 2 * pad < dilation * (kernel - 1) + 1);
    stride = uniform(1, 3);
    const int64_t span = size + 2 * pad - dilation * (kernel - 1) - 1;
    const int64_t floor = span / stride + 1, ceil = (span + stride - 1) / stride + 1;
    return uniform(0, 1) && (ceil - 1) * stride < size + pad ? ceil : floor;
  };
  g.out_height = axis(g.x.height, g.kernel_height, g.stride_height, g.pad_top, g.dilation_height);
  g.out_width = axis(g.x.width, g.kernel_width, g.stride_width, g.pad_left, g.dilation_width);
  if (g.kind == PoolKind::adaptive) g.out_height = uniform(1, 7), g.out_width = uniform(1, 7);
  g.include_pad = uniform(0, 1);
  g.divisor = uniform(0, 3) ? 0 : uniform(1, 9);
  const int64_t cut = uniform(0, static_cast<int>(channels));
  const auto wanted = [&](int64_t p, int64_t c) {
    const int64_t ox = p % g.out_width, oy = p / g.out_width % g.out_height, n = p / g.out_width / g.out_height;
    int64_t top = oy * g.stride_height - g.pad_top, left = ox * g.stride_width - g.pad_left;
    int64_t kh = g.kernel_height, kw = g.kernel_width;
    if (g.kind == PoolKind::adaptive) {
      top = oy * g.x.height / g.out_height, left = ox * g.x.width / g.out_width;
      kh = ((oy + 1) * g.x.height + g.out_height - 1) / g.out_height - top;
      kw = ((ox + 1) * g.x.width + g.out_width - 1) / g.out_width - left;
    }
    float most = -INFINITY, sum = 0;
    int64_t whole = 0, count = 0, padded = 0;
    for (int64_t i = 0; i < kh; ++i)
      for (int64_t j = 0; j < kw; ++j) {
        const int64_t y = top + i * g.dilation_height, z = left + j * g.dilation_width;
        padded += y < g.x.height + g.pad_top && z < g.x.width + g.pad_left;
        if (y < 0 || y >= g.x.height || z < 0 || z >= g.x.width) continue;
        const int64_t pixel = (n * g.x.height + y) * g.x.width + z;
        const float v = real(g.x, pixel, c);
        if (v > most || std::isnan(v)) most = v;
        sum += v;
        ++count;
        if (g.x.type == Element::u8) whole += static_cast<const uint8_t*>(g.x.data)[pixel * g.x.pixel + c] - g.x.zero;
      }
    if (g.kind == PoolKind::max) return most;
    if (g.x.type == Element::u8) sum = static_cast<float>(whole) * g.x.scale;
    if (g.kind == PoolKind::average) count = g.divisor ? g.divisor : g.include_pad ? padded : count;
    return sum / static_cast<float>(count);
  };
  check(
      g.kind == PoolKind::max ? "max_pool" : "avg_pool", target(x.view, channels),
      g.x.images * g.out_height * g.out_width, channels, true,
      [&](const Kernels& k, const Target& to, int64_t begin, int64_t end) {
        g.y = to;
        k.pool(g, begin, end, 0, cut);
        k.pool(g, begin, end, cut, channels);
      },
      wanted);
}

static void layer_norms() {
  const int64_t channels = some_channels();
  const Value x = value(1, 1, uniform(1, 9), channels, uniform(0, 4) == 0);
  LayerNorm g;
  g.x = x.view;
  g.activation = activation();
  const bool affine = uniform(0, 1);
  const auto weight = constants(channels), bias = constants(channels);
  if (affine) g.weight = weight.data(), g.bias = bias.data();
  const auto lanes = [&](auto term) {
    float sum[16] = {};
    for (int64_t c = 0; c < channels; ++c) sum[c % 16] += term(c);
    for (int half : {8, 4, 2, 1})
      for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
    return sum[0];
  };
  check(
      "layer_norm", target(x.view, channels), g.x.pixels(), channels, g.activation <= Activation::relu6,
      [&](const Kernels& k, const Target& to, int64_t begin, int64_t end) {
        g.y = to;
        k.layer_norm(g, begin, end);
      },
      [&](int64_t p, int64_t c) {
        const auto count = static_cast<float>(channels);
        const float mean = lanes([&](int64_t i) { return real(g.x, p, i); }) / count;
        const float variance = lanes([&](int64_t i) {
                                 const float d = real(g.x, p, i) - mean;
                                 return d * d;
                               }) /
                               count;
        const float y = (real(g.x, p, c) - mean) * (1.0f / std::sqrt(variance + g.eps));
        return act(g.activation, affine ? y * weight[c] + bias[c] : y);
      });
}

static void attentions() {
  const int64_t queries = uniform(1, 80), keys = uniform(1, 20), images = uniform(1, 2);
  Attention g;
  g.heads = uniform(1, 3), g.depth = uniform(1, 12);
  g.scale = 0.3f;
  g.causal = uniform(0, 1);
  const int64_t channels = g.heads * g.depth;
  const bool odd = uniform(0, 4) == 0;
  const auto floats = [&](int64_t pixels) {
    Value v = value(images, 1, pixels, channels, odd);
    while (v.view.type != Element::f32) v = value(images, 1, pixels, channels, odd);
    return v;
  };
  const Value q = floats(queries), k = floats(keys), v = floats(keys);
  g.q = q.view, g.k = k.view, g.v = v.view;
  g.q.data = q.bytes.data(), g.k.data = k.bytes.data(), g.v.data = v.bytes.data();
  const int64_t blocks = (queries + Attention::kBlock - 1) / Attention::kBlock, items = images * g.heads * blocks;
  std::vector<float> memory(static_cast<std::size_t>(Attention::kBlock * (g.depth + keys) + 16));
  float* workspace = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) / 4 % 16;
  check(
      "attention", target(g.q, channels), images * queries, channels, false,
      [&](const Kernels& kernels, const Target& to, int64_t begin, int64_t end) {
        if (end != images * queries) return;  // its items are no pixels
        (void)begin;
        g.y = to;
        kernels.attention(g, 0, items / 2, workspace);
        kernels.attention(g, items / 2, items, workspace);
      },
      [](int64_t, int64_t) { return 0.0f; });
}

int main() {
  for (int t = 0; t < 1500; ++t) {
    maps();
    binaries();
    pools();
    layer_norms();
    attentions();
  }
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures != 0;
}
