// Reductions over windows, vectorised over channels, over a float trait. Included by rows_kernel.h.
#pragma once

namespace sparseq::network {
namespace {

// What a window covers along one axis: `count` lines from `first` on, `step` apart; `padded` with the padding.
struct Extent {
  int64_t first, count, step, padded;

  static Extent of(int64_t out, int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
    const auto steps = [dilation](int64_t pixels) {  // a division takes as long as a pixel's channels
      return dilation == 1 ? pixels : (pixels + dilation - 1) / dilation;
    };
    const int64_t start = out * stride - padding;
    const int64_t skipped = start < 0 ? steps(-start) : 0;
    const int64_t fitting = steps(size - start);  // that begin inside of the image
    const int64_t last = fitting < kernel ? fitting : kernel;
    const int64_t padded_end = size + padding < start + kernel ? size + padding : start + kernel;
    return {start + skipped * dilation, last > skipped ? last - skipped : 0, dilation, padded_end - start};
  }
  static Extent adaptive(int64_t out, int64_t size, int64_t out_size) {
    const int64_t first = out * size / out_size, end = ((out + 1) * size + out_size - 1) / out_size;
    return {first, end - first, 1, end - first};
  }
};

template <class F>
struct PoolKernel {
  using Rows = RowsKernel<F>;
  static constexpr int kLanes = F::kLanes;
  template <class T>
  using Reader = typename Rows::template Reader<T>;
  template <class T>
  using Writer = typename Rows::template Writer<T>;

  // f(pointer to a pixel) for each of a window, in row-major order
  template <class T>
  struct Window {
    const T* first;
    int64_t rows, columns, line, pixel;
    template <class G>
    void each(G g) const {
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; ++j) g(first + i * line + j * pixel);
    }
  };

  // W neighbouring channels as the compiler's vectors of at most 32 bytes, or as one value.
  template <class T, int N>
  struct VectorOf {
    typedef T Type __attribute__((vector_size(N * sizeof(T))));
  };
  template <class T>
  struct VectorOf<T, 1> {
    typedef T Type;
  };
  template <class T, int W>
  struct Lanes {
    static constexpr int kEach = W * int(sizeof(T)) > 32 ? 32 / int(sizeof(T)) : W;
    static constexpr int kCount = W / kEach;
    using Vec = typename VectorOf<T, kEach>::Type;
  };

  // f(a number W, channel c) for blocks of W channels; the last may overlap the one before.
  template <class G>
  static void blocks(int64_t begin, int64_t end, G g) {
    int64_t c = begin;
    for (; c + 64 <= end; c += 64) g(std::integral_constant<int, 64>{}, c);
    if (c + 32 <= end) g(std::integral_constant<int, 32>{}, c), c += 32;
    if (c + 16 <= end) g(std::integral_constant<int, 16>{}, c), c += 16;
    if (c + 8 <= end) g(std::integral_constant<int, 8>{}, c), c += 8;
    if (c < end && end - begin >= 8) return g(std::integral_constant<int, 8>{}, end - 8);
    for (; c < end; ++c) g(std::integral_constant<int, 1>{}, c);
  }

  // One by one: an array that is copied whole would not stay in registers.
  template <class L, class T>
  static void put(const typename L::Vec (&from)[L::kCount], T* to) {
#pragma GCC unroll 8
    for (int k = 0; k < L::kCount; ++k) {
      const typename L::Vec v = from[k];
      std::memcpy(to + k * L::kEach, &v, sizeof v);
    }
  }

  // Bounded: of floats by infinities.
  template <int W, class T>
  static void max_of(const Window<T>& window, T low, T high, T* to) {
    using L = Lanes<T, W>;
    typename L::Vec most[L::kCount];
#pragma GCC unroll 8
    for (auto& m : most) m = typename L::Vec{} + low;
    window.each([&](const T* p) {
#pragma GCC unroll 8
      for (int k = 0; k < L::kCount; ++k) {
        typename L::Vec v;
        std::memcpy(&v, p + k * L::kEach, sizeof v);
        if constexpr (std::is_same_v<T, float>)
          most[k] = ((v > most[k]) | (v != v)) ? v : most[k];  // a NaN stays
        else
          most[k] = v > most[k] ? v : most[k];
      }
    });
    if constexpr (!std::is_same_v<T, float>) {
      const typename L::Vec bound = typename L::Vec{} + high;
#pragma GCC unroll 8
      for (auto& m : most) m = m > bound ? bound : m;
    }
    put<L>(most, to);
  }

  template <int W>
  static void sum_of(const Window<float>& window, float* to) {
    using L = Lanes<float, W>;
    typename L::Vec sum[L::kCount] = {};
    window.each([&](const float* p) {
#pragma GCC unroll 8
      for (int k = 0; k < L::kCount; ++k) {
        typename L::Vec v;
        std::memcpy(&v, p + k * L::kEach, sizeof v);
        sum[k] += v;
      }
    });
    put<L>(sum, to);
  }

  template <int W>
  static void sum_of(const Window<uint8_t>& window, int32_t* to) {
    constexpr int kCount = (W + kLanes - 1) / kLanes;
    typename F::Int sum[kCount];
#pragma GCC unroll 8
    for (auto& s : sum) s = F::set_int(0);
    window.each([&](const uint8_t* p) {
      asm("" : "+r"(p));  // GCC 12, where it vectorises this loop over the scalar trait's lanes, loses pixels
      uint8_t few[kLanes] = {};
      if constexpr (W < kLanes) p = static_cast<const uint8_t*>(std::memcpy(few, p, W));
#pragma GCC unroll 8
      for (int k = 0; k < kCount; ++k) sum[k] = F::add(sum[k], F::load_u8(p + k * kLanes));
    });
#pragma GCC unroll 8
    for (int k = 0; k < kCount; ++k) F::store_int(to + k * kLanes, sum[k]);
  }

  template <int W, class T, class Compute>
  static void write(const Writer<T>& writer, T* to, Compute compute) {
    for (int c = 0; c < W; c += kLanes)
      if constexpr (W % kLanes == 0)
        writer.store(to + c, compute(c), Whole{});
      else
        writer.store(to + c, compute(c), int64_t{W});
  }

  // Reduces a window to W results at `to`.
  template <class X, class Y>
  struct Max {
    const Pool& g;
    Reader<X> reader;
    Writer<Y> writer;
    uint8_t low, high;
    bool as_is;  // y's grid is x's, and its finite reals come back as the integers that they were
    explicit Max(const Pool& p)
        : g(p),
          reader(p.x),
          writer(p.y),
          low(static_cast<uint8_t>(p.y.low)),
          high(static_cast<uint8_t>(p.y.high)),
          as_is(p.x.scale == p.y.scale && p.x.zero == p.y.zero && p.x.scale < 1e30f) {}

    template <int W>
    void run(const Window<X>& window, int64_t, Y* to) const {
      const bool empty = window.rows == 0 || window.columns == 0;  // small images under wide dilation: -inf
      if constexpr (std::is_same_v<X, uint8_t> && std::is_same_v<Y, uint8_t>) {
        if (as_is && !empty) return max_of<W>(window, low, high, to);
      }
      constexpr X least = std::is_same_v<X, float> ? X(-__builtin_inff()) : X(0), greatest = X(255);
      alignas(64) X most[W < kLanes ? kLanes : W] = {};
      max_of<W>(window, least, greatest, most);
      write<W>(writer, to, [&](int c) { return empty ? F::set(-__builtin_inff()) : reader.load(most + c, Whole{}); });
    }
  };

  template <class X, class Y>
  struct Average {
    using Int = typename F::Int;
    const Pool& g;
    Writer<Y> writer;
    typename F::Float scale;
    explicit Average(const Pool& p) : g(p), writer(p.y), scale(F::set(p.x.scale)) {}

    template <int W>
    void run(const Window<X>& window, int64_t count, Y* to) const {
      using Total = std::conditional_t<std::is_same_v<X, float>, float, int32_t>;
      alignas(64) Total total[W < kLanes ? kLanes : W] = {};
      sum_of<W>(window, total);
      const auto divisor = F::set(static_cast<float>(count));
      const Int zeros = F::set_int(static_cast<int32_t>(window.rows * window.columns) * g.x.zero);
      write<W>(writer, to, [&](int c) {
        if constexpr (std::is_same_v<X, float>)
          return F::div(F::load(total + c), divisor);
        else
          return F::div(F::mul(F::to_float(F::sub(F::load_int(total + c), zeros)), scale), divisor);
      });
    }
  };

  template <class Reduce, class X, class Y>
  static void run(const Pool& g, int64_t begin, int64_t end, int64_t channel_begin, int64_t channel_end) {
    const Reduce reduce(g);
    const View& x = g.x;
    const int64_t line = x.width * x.pixel;
    int64_t column = begin % g.out_width, row = begin / g.out_width % g.out_height;
    int64_t image = begin / g.out_width / g.out_height;
    const auto rows_of = [&] {
      return g.kind == PoolKind::adaptive ? Extent::adaptive(row, x.height, g.out_height)
                                          : Extent::of(row, x.height, g.kernel_height, g.stride_height, g.pad_top,
                                                       g.kind == PoolKind::max ? g.dilation_height : 1);
    };
    Extent v = rows_of();
    for (int64_t i = begin; i < end; ++i) {
      const Extent h = g.kind == PoolKind::adaptive
                           ? Extent::adaptive(column, x.width, g.out_width)
                           : Extent::of(column, x.width, g.kernel_width, g.stride_width, g.pad_left,
                                        g.kind == PoolKind::max ? g.dilation_width : 1);
      const int64_t count = g.kind != PoolKind::average ? v.count * h.count
                            : g.divisor != 0            ? g.divisor
                            : g.include_pad             ? v.padded * h.padded
                                                        : v.count * h.count;
      const X* from = static_cast<const X*>(x.data) + ((image * x.height + v.first) * x.width + h.first) * x.pixel;
      Y* to = static_cast<Y*>(g.y.data) + i * g.y.pixel;
      blocks(channel_begin, channel_end, [&]<class W>(W, int64_t c) {
        const Window<X> window{from + c, v.count, h.count, v.step * line, h.step * x.pixel};
        reduce.template run<W::value>(window, count, to + c);
      });
      if (++column < g.out_width) continue;
      column = 0;
      if (++row == g.out_height) row = 0, ++image;
      v = rows_of();
    }
  }

  static void pool(const Pool& g, int64_t begin, int64_t end, int64_t channel_begin, int64_t channel_end) {
    by_type(g.x.type, [&]<class X>(X) {
      by_type(g.y.type, [&]<class Y>(Y) {
        g.kind == PoolKind::max ? run<Max<X, Y>, X, Y>(g, begin, end, channel_begin, channel_end)
                                : run<Average<X, Y>, X, Y>(g, begin, end, channel_begin, channel_end);
      });
    });
  }
};

}  // namespace
}  // namespace sparseq::network
