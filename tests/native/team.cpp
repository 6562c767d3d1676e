// Every item of every step runs once, in claims of nearly as many, and no step begins before the one before it ended:
// with more threads than lanes, late ones, some that never come, and a step that throws.
#include "../../csrc/network/team.h"

#include <cstdio>
#include <random>
#include <stdexcept>
#include <thread>

using namespace sparseq::network;

static int failures = 0;
static void expect(bool ok, const char* what, int64_t where) {
  if (!ok && ++failures <= 20) std::printf("FAIL %s %lld\n", what, static_cast<long long>(where));
}

template <class Walk>
static void on_threads(int64_t threads, bool all_come, Walk walk) {
  std::vector<std::thread> others;
  for (int64_t t = 1; t < threads; ++t)
    if (all_come || t % 3 != 1) others.emplace_back([walk, t] { walk(t); });
  walk(0);
  for (auto& t : others) t.join();
}

int main() {
  std::mt19937 rng(1);
  const auto uniform = [&](int a, int b) { return std::uniform_int_distribution<int>(a, b)(rng); };
  Team team;
  int64_t checks = 0;
  for (int trial = 0; trial < 300; ++trial) {
    const int64_t threads = uniform(1, 20), count = uniform(1, 12);
    std::vector<Share> shares;
    std::vector<std::vector<std::atomic<int>>> ran;
    for (int64_t n = 0; n < count; ++n) {
      const Share s{uniform(0, 90), uniform(1, 9), uniform(1, 30)};
      for (int64_t claim = 0; claim < s.claims(); ++claim) {
        const int64_t units = (s.begin(claim + 1) - s.begin(claim) + s.unit - 1) / s.unit;
        expect(s.begin(claim) % s.unit == 0 && units >= s.units() / s.claims() &&
                   units <= (s.units() + s.claims() - 1) / s.claims(),
               "claims are nearly equal", claim);
      }
      shares.push_back(s);
      ran.emplace_back(size_t(s.items));
    }
    std::vector<std::atomic<int64_t>> done(size_t(count) + 1);
    const bool throws = trial % 7 == 0;
    team.reset(size_t(count), threads);
    on_threads(threads, trial % 2 == 0, [&](int64_t thread) {
      team.walk(
          thread, [&](size_t n) { return shares[n]; },
          [&](size_t n, int64_t begin, int64_t end) {
            if (n > 0) expect(done[n - 1] == shares[n - 1].items, "a step began early", int64_t(n));
            if (throws && int64_t(n) == count / 2) throw std::runtime_error("planted");
            for (int64_t i = begin; i < end; ++i) ++ran[n][size_t(i)];
            done[n] += end - begin;
          });
    });
    bool thrown = false;
    try {
      team.rethrow();
    } catch (const std::runtime_error&) {
      thrown = true;
    }
    expect(thrown == (throws && shares[size_t(count / 2)].items > 0), "an error is passed on", trial);
    for (int64_t n = 0; n < (thrown ? count / 2 : count); ++n)
      for (const auto& times : ran[size_t(n)]) expect(times == 1, "an item ran once", trial), ++checks;
  }
  std::printf("%lld checks, %d failures\n", static_cast<long long>(checks), failures);
  return failures != 0;
}
