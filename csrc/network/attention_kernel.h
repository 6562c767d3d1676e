// Attention over a float trait, queries in the lanes: see rows.h for what it computes. Included by rows_kernel.h.
#pragma once

namespace sparseq::network {
namespace {

template <class F>
struct AttentionKernel {
  using Rows = RowsKernel<F>;
  using Float = typename F::Float;
  using Int = typename F::Int;
  static constexpr int kLanes = F::kLanes;
  // Queries of W vectors meet so many keys, or values' channels, at a time: sums stay in registers.
  static constexpr int W = kLanes == 16 ? 4 : 2, kTogether = 6, kQueries = W * kLanes;
  static_assert(Attention::kBlock % kQueries == 0);

  // f(a number n of kTogether, or the rest, as a constant; where it begins)
  template <class G>
  static void in_parts(int64_t count, G g) {
    int64_t at = 0;
    for (; at + kTogether <= count; at += kTogether) g(std::integral_constant<int, kTogether>{}, at);
    rest<kTogether - 1>(count - at, at, g);
  }
  template <int N, class G>
  static void rest(int64_t left, int64_t at, G g) {
    if constexpr (N > 0) left == N ? g(std::integral_constant<int, N>{}, at) : rest<N - 1>(left, at, g);
  }

  // to[n][w] = sum over i, in order, of one value `from(n, i)` times vectors[i][w]
  template <int N, int V, class From>
  static void products(Float (&to)[N][V], const float* vectors, int64_t count, From from) {
    Float sums[N][V];  // in registers, as nothing else can name them
    unroll<N * V>([&](auto i) SPARSEQ_INLINE { sums[i / V][i % V] = F::set(0.0f); });
    for (int64_t i = 0; i < count; ++i, vectors += V * kLanes) {
      Float x[V];
      unroll<V>([&](auto w) SPARSEQ_INLINE { x[w] = F::load(vectors + w * kLanes); });
      unroll<N>([&](auto n) SPARSEQ_INLINE {
        const Float one = F::set(from(n, i));
        unroll<V>([&](auto w) SPARSEQ_INLINE { sums[n][w] = F::fma(one, x[w], sums[n][w]); });
      });
    }
    unroll<N * V>([&](auto i) SPARSEQ_INLINE { to[i / V][i % V] = sums[i / V][i % V]; });
  }

  // One head's queries [first, first + count) of an image: at most V vectors of them.
  template <int V, class Y>
  struct Head {
    const Attention& g;
    const float *q, *k, *v;  // of the image's first pixel, this head
    int64_t first, count, keys;
    float* queries;  // [depth][V lanes], then the results
    float* scores;   // [keys][V lanes]

    // x in the lanes whose query may look at a key, y in the others.
    Float where_seen(int64_t key, int w, Float x, Float y) const {
      int32_t seen[kLanes], hidden[kLanes];
      for (int l = 0; l < kLanes; ++l) seen[l] = first + w * kLanes + l >= key ? -1 : 0, hidden[l] = ~seen[l];
      const Int kept = F::bit_and(F::bits(x), F::load_int(seen)), other = F::bit_and(F::bits(y), F::load_int(hidden));
      return F::from_bits(F::bit_or(kept, other));
    }

    // Functions of their own, or their loops would contend for registers.
    __attribute__((noinline)) void turn_queries() const {
      for (int64_t i = 0; i < V * kLanes; ++i) {
        const float* from = q + (first + i) * g.q.pixel;
        for (int64_t d = 0; d < g.depth; ++d) queries[d * V * kLanes + i] = i < count ? from[d] : 0.0f;
      }
    }

    __attribute__((noinline)) void score(Float (&most)[V]) const {
      for (Float& m : most) m = F::set(-__builtin_inff());
      const Float scale = F::set(g.scale);
      in_parts(keys, [&]<int N>(std::integral_constant<int, N>, int64_t key) {
        Float sums[N][V];
        const float* from = k + key * g.k.pixel;
        const int64_t pixel = g.k.pixel;
        products(sums, queries, g.depth, [=](int n, int64_t d) { return from[n * pixel + d]; });
        for (int n = 0; n < N; ++n)
          for (int w = 0; w < V; ++w) {
            Float s = F::mul(sums[n][w], scale);
            if (g.causal && key + n > first) s = where_seen(key + n, w, s, F::set(-__builtin_inff()));
            most[w] = F::max(most[w], s);
            F::store(scores + ((key + n) * V + w) * kLanes, s);
          }
      });
    }

    // Scores to weights; to what the weights' sums' inverses are.
    __attribute__((noinline)) void weigh(Float (&most)[V]) const {
      Float sums[V];
      for (Float& s : sums) s = F::set(0.0f);
      for (int64_t key = 0; key < keys; ++key)
        for (int w = 0; w < V; ++w) {
          float* at = scores + (key * V + w) * kLanes;
          Float p = Functions<F>::exp(F::sub(F::load(at), most[w]));
          if (g.causal && key > first) p = where_seen(key, w, p, F::set(0.0f));
          sums[w] = F::add(sums[w], p);
          F::store(at, p);
        }
      for (int w = 0; w < V; ++w) most[w] = F::div(F::set(1.0f), sums[w]);
    }

    __attribute__((noinline)) void mix(const Float (&inverse)[V]) const {
      const int64_t plain = g.causal && first + 1 < keys ? first + 1 : keys;  // keys that all queries look at
      in_parts(g.depth, [&]<int N>(std::integral_constant<int, N>, int64_t channel) {
        Float sums[N][V];
        const float* from = v + channel;
        const int64_t pixel = g.v.pixel;
        products(sums, scores, plain, [=](int n, int64_t key) { return from[key * pixel + n]; });
        for (int64_t key = plain; key < keys; ++key)  // a hidden infinity must not meet a weight of 0
          for (int n = 0; n < N; ++n)
            for (int w = 0; w < V; ++w) {
              const Float p = F::load(scores + (key * V + w) * kLanes), more = F::set(from[key * pixel + n]);
              sums[n][w] = where_seen(key, w, F::fma(more, p, sums[n][w]), sums[n][w]);
            }
        for (int n = 0; n < N; ++n)
          for (int w = 0; w < V; ++w)
            F::store(queries + ((channel + n) * V + w) * kLanes, F::mul(sums[n][w], inverse[w]));
      });
    }

    __attribute__((noinline)) void run(Y* to) const {
      Float most[V];
      turn_queries();
      score(most);
      weigh(most);
      mix(most);
      const typename Rows::template Writer<Y> writer(g.y);
      for (int64_t i = 0; i < count; ++i, to += g.y.pixel)
        Rows::write(writer, to, g.depth, [&](int64_t c, auto left) {
          float lanes[kLanes] = {};
          const int64_t some = std::is_same_v<decltype(left), Whole> ? kLanes : g.depth - c;
          for (int64_t l = 0; l < some; ++l) lanes[l] = queries[(c + l) * V * kLanes + i];
          return F::load(lanes);
        });
    }
  };

  template <class Y>
  static void item(const Attention& g, int64_t item, float* workspace) {
    const int64_t pixels = g.q.height * g.q.width, keys = g.k.height * g.k.width;
    const int64_t blocks = (pixels + Attention::kBlock - 1) / Attention::kBlock, block = item % blocks;
    const int64_t head = item / blocks % g.heads, image = item / blocks / g.heads;
    const auto part = [&](const View& view, int64_t of_image) {
      return static_cast<const float*>(view.data) + image * of_image * view.pixel + head * g.depth;
    };
    const int64_t end = (block + 1) * Attention::kBlock < pixels ? (block + 1) * Attention::kBlock : pixels;
    for (int64_t first = block * Attention::kBlock; first < end; first += kQueries) {
      const int64_t count = end - first < kQueries ? end - first : kQueries;
      const int64_t seen = g.causal && first + count < keys ? first + count : keys;
      Y* to = static_cast<Y*>(g.y.data) + (image * pixels + first) * g.y.pixel + head * g.depth;
      with_vectors<W>((count + kLanes - 1) / kLanes, [&]<int V>(std::integral_constant<int, V>) {
        const Head<V, Y> of{g,
                            part(g.q, pixels),
                            part(g.k, keys),
                            part(g.v, keys),
                            first,
                            count,
                            seen,
                            workspace,
                            workspace + g.depth * V * kLanes};
        of.run(to);
      });
    }
  }
  template <int V, class G>
  static void with_vectors(int64_t count, G g) {
    if constexpr (V > 1) {
      if (count < V) return with_vectors<V - 1>(count, g);
    }
    g(std::integral_constant<int, V>{});
  }

  static void attention(const Attention& g, int64_t begin, int64_t end, float* workspace) {
    by_type(g.y.type, [&]<class Y>(Y) {
      for (int64_t i = begin; i < end; ++i) item<Y>(g, i, workspace);
    });
  }
};

}  // namespace
}  // namespace sparseq::network
