// The threads of one call, walking its steps together: one parallel region for the whole program. No torch.
#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <utility>
#include <vector>

namespace sparseq::network {

// How a step is divided: into claims of nearly as many whole units of items.
struct Share {
  int64_t items = 0, unit = 1, most = 1;  // items of a unit, claims
  int64_t units() const { return (items + unit - 1) / unit; }
  int64_t claims() const { return most < units() ? most : units(); }
  int64_t begin(int64_t claim) const {
    const int64_t at = units() * claim / claims() * unit;
    return at < items ? at : items;
  }
};

// A step of less than about this many nanoseconds is not worth a thread's waiting for its fellows.
constexpr double kClaim = 3000;

inline Share share(int64_t items, double nanoseconds, int64_t threads) {
  Share s{items};
  if (threads < 2) return s;
  const double most = nanoseconds * double(items) / kClaim;
  s.most = most < 2 ? 1 : most < double(8 * threads) ? int64_t(most) : 8 * threads;
  return s;
}

// Every thread calls walk(), at any time, any number of them, and gets its part of what is left: a late one finds
// nothing to do, and no one waits for a thread that has not come. Threads begin with a lane of their own, the same part
// of every step, so that what one made is mostly in its cache where it goes on; then they help in the others'.
class Team {
 public:
  void reset(size_t steps, int64_t threads) {
    if (steps_.size() != steps) steps_ = std::vector<Step>(steps);
    lanes_ = threads < kLanes ? threads : kLanes;
    for (Step& s : steps_) {
      for (int64_t lane = 0; lane < lanes_; ++lane) s.taken[lane].store(0, std::memory_order_relaxed);
      s.done.store(0, std::memory_order_relaxed);
    }
    failed_.store(false, std::memory_order_relaxed);
    error_ = nullptr;
    claimed_.clear(std::memory_order_relaxed);
  }

  // thread: from 0 on. share(step) -> Share; run(step, first item, last item + 1). Never throws: see rethrow().
  template <class ShareOf, class Run>
  void walk(int64_t thread, ShareOf share, Run run) noexcept {
    for (size_t n = 0; n < steps_.size(); ++n) {
      Step& s = steps_[n];
      const Share part = share(n);
      const int64_t claims = part.claims();
      if (s.done.load(std::memory_order_acquire) == claims) continue;
      for (int64_t i = 0; i < lanes_; ++i) {
        const int64_t lane = (thread + i) % lanes_;
        const int64_t first = (lane * claims + lanes_ - 1) / lanes_, last = ((lane + 1) * claims + lanes_ - 1) / lanes_;
        for (int64_t claim; (claim = first + s.taken[lane].fetch_add(1, std::memory_order_relaxed)) < last;) {
          try {
            run(n, part.begin(claim), part.begin(claim + 1));
          } catch (...) {
            if (!claimed_.test_and_set()) error_ = std::current_exception();
            failed_.store(true, std::memory_order_release);
            return;
          }
          s.done.fetch_add(1, std::memory_order_acq_rel);
        }
      }
      for (int spins = 0; s.done.load(std::memory_order_acquire) < claims; ++spins) {
        if (failed_.load(std::memory_order_acquire)) return;
        if (spins < kSpins)
          pause();
        else
          sched_yield();
      }
    }
  }

  // After all threads have walked.
  void rethrow() {
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  static constexpr int kSpins = 2000;
  static constexpr int64_t kLanes = 15;
  struct alignas(64) Step {
    std::atomic<int32_t> done = 0, taken[kLanes];  // claims, of each lane
  };
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  std::vector<Step> steps_;
  int64_t lanes_ = 1;
  std::atomic<bool> failed_ = false;
  std::atomic_flag claimed_ = ATOMIC_FLAG_INIT;
  std::exception_ptr error_;
};

}  // namespace sparseq::network
