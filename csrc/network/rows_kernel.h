// Maps, sums and norms over rows of channels, over a float trait: see rows.h for what they compute.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../core/functions.h"
#include "../gemm/unroll.h"
#include "rows.h"

namespace sparseq::network {
namespace {

// f(a value of the element's type)
template <class G>
inline void by_type(Element type, G g) {
  type == Element::u8 ? g(uint8_t{}) : g(float{});
}

// Rows are read and written as vectors, or as the first `left` elements of one: nothing beyond a row's channels is
// touched, as it may be another part of a concatenation, being written.
struct Whole {};

template <class F>
struct RowsKernel {
  using Float = typename F::Float;
  using Int = typename F::Int;
  static constexpr int kLanes = F::kLanes;
  static constexpr int64_t kBuffer = 512;  // floats between steps that are loops of their own; stays in L1

  template <class T>
  struct Reader {
    Float scale;
    Int zero;
    explicit Reader(const View& v) : scale(F::set(v.scale)), zero(F::set_int(v.zero)) {}
    Float load(const T* p, Whole) const {
      if constexpr (std::is_same_v<T, float>)
        return F::load(p);
      else
        return F::mul(F::to_float(F::sub(F::load_u8(p), zero)), scale);
    }
    Float load(const T* p, int64_t left) const {
      T lanes[kLanes] = {};
      std::memcpy(lanes, p, static_cast<std::size_t>(left) * sizeof(T));
      return load(lanes, Whole{});
    }
  };

  template <class T>
  struct Writer {
    ByteGrid<F> grid;
    explicit Writer(const Target& t) : grid(t.scale, t.zero, t.low, t.high) {}
    void store(T* p, Float y, Whole) const {
      if constexpr (std::is_same_v<T, float>)
        F::store(p, y);
      else
        grid.store(y, p);
    }
    void store(T* p, Float y, int64_t left) const {
      T lanes[kLanes];
      store(lanes, y, Whole{});
      std::memcpy(p, lanes, static_cast<std::size_t>(left) * sizeof(T));
    }
  };

  // to[c] = stored(compute(c, whole or left)) for c < count
  template <class T, class Compute>
  static void write(const Writer<T>& writer, T* to, int64_t count, Compute compute) {
    int64_t c = 0;
    for (; c + kLanes <= count; c += kLanes) writer.store(to + c, compute(c, Whole{}), Whole{});
    if (c < count) writer.store(to + c, compute(c, count - c), count - c);
  }

  // The same of act(compute). What Clamp covers is part of the loop; the others are loops of their own between.
  template <class T>
  struct Finish {
    Writer<T> writer;
    Activation activation;
    Clamp<F> clamp;
    Finish(const Target& t, Activation a) : writer(t), activation(a), clamp(a) {}

    template <class Compute>
    void run(T* to, int64_t count, Compute compute) const {
      if (Clamp<F>::covers(activation))
        return write(writer, to, count, [&](int64_t c, auto left) { return clamp(compute(c, left)); });
      const Writer<float> plain{Target{}};
      alignas(64) float buffer[kBuffer];
      for (int64_t at = 0; at < count; at += kBuffer) {
        const int64_t some = count - at < kBuffer ? count - at : kBuffer;
        write(plain, buffer, some, [&](int64_t c, auto left) { return compute(at + c, left); });
        for (int64_t c = some; c % kLanes != 0; ++c) buffer[c] = 0.0f;
        activate(activation, buffer, some);
        write(writer, to + at, some, [&](int64_t c, auto) { return F::load(buffer + c); });
      }
    }
  };

  static void activate(Activation activation, float* values, int64_t count) {
    Functions<F>::choose(activation, [&](auto f) {
      for (int64_t c = 0; c < count; c += kLanes) F::store(values + c, f(F::load(values + c)));
    });
  }

  // ---- map ----

  template <class X, class Y>
  static void map_of(const Map& m, int64_t begin, int64_t end) {
    const Reader<X> reader(m.x);
    const Finish<Y> finish(m.y, m.activation);
    const int64_t channels = m.x.channels, from_pixel = m.x.pixel, to_pixel = m.y.pixel;
    const X* from = static_cast<const X*>(m.x.data) + begin * from_pixel;
    Y* to = static_cast<Y*>(m.y.data) + begin * to_pixel;
    if (m.scale == nullptr) {
      const bool flat = from_pixel == channels && to_pixel == channels;
      const int64_t rows = flat ? 1 : end - begin, count = flat ? (end - begin) * channels : channels;
      for (int64_t i = 0; i < rows; ++i, from += from_pixel, to += to_pixel)
        finish.run(to, count, [&](int64_t c, auto left) { return reader.load(from + c, left); });
      return;
    }
    const Reader<float> constants{View{}};
    for (int64_t i = begin; i < end; ++i, from += from_pixel, to += to_pixel)
      finish.run(to, channels, [&](int64_t c, auto left) {
        const Float scaled = F::mul(reader.load(from + c, left), constants.load(m.scale + c, left));
        return F::add(scaled, constants.load(m.shift + c, left));
      });
  }

  static void map(const Map& m, int64_t begin, int64_t end) {
    if (m.bytes != nullptr) return look_up(m, begin, end);
    by_type(m.x.type, [&]<class X>(X) { by_type(m.y.type, [&]<class Y>(Y) { map_of<X, Y>(m, begin, end); }); });
  }

  static void look_up(const Map& m, int64_t begin, int64_t end) {
    const int64_t channels = m.x.channels;
    const auto* from = static_cast<const uint8_t*>(m.x.data) + begin * m.x.pixel;
    auto* to = static_cast<uint8_t*>(m.y.data) + begin * m.y.pixel;
    const bool flat = m.x.pixel == channels && m.y.pixel == channels;
    const int64_t rows = flat ? 1 : end - begin, count = flat ? (end - begin) * channels : channels;
    const typename F::Table table(m.bytes);
    const int64_t from_pixel = m.x.pixel, to_pixel = m.y.pixel;  // a byte written might be one of m's
    for (int64_t i = 0; i < rows; ++i, from += from_pixel, to += to_pixel) {
      int64_t c = 0;
      for (; c + table.kBytes <= count; c += table.kBytes) table.look_up(from + c, to + c);
      for (; c < count; ++c) to[c] = table.bytes[from[c]];
    }
  }

  // ---- binary ----

  // Where pixel p of y, image n, reads: repeated over the images, the pixels of one, or both.
  struct Source {
    int64_t image, position, pixel;
    Source(const View& v, int64_t plane)
        : image(v.images == 1 ? 0 : v.height * v.width),
          position(v.height * v.width == 1 && plane != 1 ? 0 : 1),
          pixel(v.pixel) {}
    int64_t at(int64_t n, int64_t p) const { return (n * image + p * position) * pixel; }
  };

  template <class A, class B, class Y, bool kProduct>
  static void binary_of(const Binary& g, int64_t begin, int64_t end) {
    const Reader<A> read_a(g.a);
    const Reader<B> read_b(g.b);
    const Finish<Y> finish(g.y, g.activation);
    const int64_t channels = g.a.channels, plane = g.height * g.width, pixels = g.images * plane;
    const auto run = [&](const A* a, const B* b, Y* to, int64_t count) {
      finish.run(to, count, [&](int64_t c, auto left) {
        const Float x = read_a.load(a + c, left), y = read_b.load(b + c, left);
        return kProduct ? F::mul(x, y) : F::add(x, y);
      });
    };
    const auto whole = [&](const View& v) { return v.pixels() == pixels && v.pixel == channels; };
    const A* a = static_cast<const A*>(g.a.data);
    const B* b = static_cast<const B*>(g.b.data);
    Y* to = static_cast<Y*>(g.y.data) + begin * g.y.pixel;
    if (whole(g.a) && whole(g.b) && g.y.pixel == channels)
      return run(a + begin * channels, b + begin * channels, to, (end - begin) * channels);
    const Source of_a(g.a, plane), of_b(g.b, plane);
    int64_t n = begin / plane, p = begin % plane;
    for (int64_t i = begin; i < end; ++i, to += g.y.pixel) {
      run(a + of_a.at(n, p), b + of_b.at(n, p), to, channels);
      if (++p == plane) p = 0, ++n;
    }
  }

  static void binary(const Binary& g, int64_t begin, int64_t end) {
    by_type(g.a.type, [&]<class A>(A) {
      by_type(g.b.type, [&]<class B>(B) {
        by_type(g.y.type, [&]<class Y>(Y) {
          g.product ? binary_of<A, B, Y, true>(g, begin, end) : binary_of<A, B, Y, false>(g, begin, end);
        });
      });
    });
  }

  // ---- layer_norm ----

  static constexpr int kParts = 16 / kLanes;  // sixteen lanes of a sum

  struct Sum {
    Float part[kParts];
    Sum() {
      for (Float& p : part) p = F::set(0.0f);
    }
    float total() const {
      alignas(64) float lane[16];
      for (int i = 0; i < kParts; ++i) F::store(lane + i * kLanes, part[i]);
      for (int half = 8; half > 0; half /= 2)
        for (int l = 0; l < half; ++l) lane[l] = lane[l] + lane[l + half];
      return lane[0];
    }
  };

  // The sum of value(vector of x, c), in the lanes past the end of 0.
  template <class X, class Value>
  static float sum(const Reader<X>& reader, const X* from, int64_t channels, Value value) {
    Sum s;
    int64_t c = 0;
    for (; c + 16 <= channels; c += 16)
      for (int i = 0; i < kParts; ++i)
        s.part[i] = F::add(s.part[i], value(reader.load(from + c + i * kLanes, Whole{})));
    for (int i = 0; i < kParts && c < channels; ++i, c += kLanes) {
      const int64_t left = channels - c < kLanes ? channels - c : kLanes;
      alignas(64) float lanes[kLanes];
      F::store(lanes, value(reader.load(from + c, left)));
      for (int64_t l = left; l < kLanes; ++l) lanes[l] = 0.0f;
      s.part[i] = F::add(s.part[i], F::load(lanes));
    }
    return s.total();
  }

  template <class X, class Y>
  static void layer_norm_of(const LayerNorm& g, int64_t begin, int64_t end) {
    const Reader<X> reader(g.x);
    const Reader<float> constants{View{}};
    const Finish<Y> finish(g.y, g.activation);
    const int64_t channels = g.x.channels;
    const auto count = static_cast<float>(channels);
    const X* from = static_cast<const X*>(g.x.data) + begin * g.x.pixel;
    Y* to = static_cast<Y*>(g.y.data) + begin * g.y.pixel;
    for (int64_t i = begin; i < end; ++i, from += g.x.pixel, to += g.y.pixel) {
      const Float mean = F::set(sum(reader, from, channels, [&](Float x) { return x; }) / count);
      const float squares = sum(reader, from, channels, [&](Float x) {
        const Float d = F::sub(x, mean);
        return F::mul(d, d);
      });
      const Float factor = F::set(1.0f / std::sqrt(squares / count + g.eps));
      finish.run(to, channels, [&](int64_t c, auto left) {
        const Float y = F::mul(F::sub(reader.load(from + c, left), mean), factor);
        if (g.weight == nullptr) return y;
        return F::add(F::mul(y, constants.load(g.weight + c, left)), constants.load(g.bias + c, left));
      });
    }
  }

  static void layer_norm(const LayerNorm& g, int64_t begin, int64_t end) {
    by_type(g.x.type, [&]<class X>(X) { by_type(g.y.type, [&]<class Y>(Y) { layer_norm_of<X, Y>(g, begin, end); }); });
  }
};

}  // namespace
}  // namespace sparseq::network

#include "attention_kernel.h"
#include "pool_kernel.h"

namespace sparseq::network {
namespace {

template <class F>
constexpr Kernels make_kernels() {
  return {RowsKernel<F>::map, RowsKernel<F>::binary, PoolKernel<F>::pool, RowsKernel<F>::layer_norm,
          AttentionKernel<F>::attention};
}

}  // namespace
}  // namespace sparseq::network
