// A program for tensors of certain shapes and strides: its steps and the arena they share. No torch.
#pragma once

#include <mutex>

#include "../core/isa.h"
#include "steps.h"

namespace sparseq::network {

struct OutputInfo {
  std::vector<int64_t> sizes;
  bool channels_last;
};

// The steps of one running call.
struct Run {
  std::vector<Step> steps;
  Team team;
};

class Plan {
 public:
  // Throws std::invalid_argument where the tensors do not fit the program.
  Plan(std::shared_ptr<const Program> program, const std::vector<TensorInfo>& inputs,
       const std::vector<TensorInfo>& constants, Isa isa, int64_t threads);

  const std::vector<OutputInfo>& outputs() const { return outputs_; }
  int64_t arena() const { return bytes_; }

  // parallel(threads, walk): calls walk(thread) on up to so many threads. bases: the arena, the inputs, the outputs.
  // Throws std::invalid_argument where tiles are not of their weight. Any number of calls at a time.
  template <class Parallel>
  void run(const Call& call, Parallel parallel) const {
    std::unique_ptr<Run> run = take();
    bind(*run, call);
    const int64_t threads = useful_threads(*run);
    const auto work = [&](size_t n, int64_t begin, int64_t end) {
      std::visit([&](const auto& step) { step.run(begin, end); }, run->steps[n]);
    };
    const auto share = [&](size_t n) { return std::visit([](const auto& step) { return step.share; }, run->steps[n]); };
    if (threads < 2) {
      for (size_t n = 0; n < run->steps.size(); ++n) work(n, 0, share(n).items);
    } else {
      run->team.reset(run->steps.size(), threads);
      parallel(threads, [&](int64_t thread) { run->team.walk(thread, share, work); });
      run->team.rethrow();
    }
    give(std::move(run));
  }

 private:
  class Builder;
  std::unique_ptr<Run> take() const;
  void give(std::unique_ptr<Run> run) const;
  void bind(Run& run, const Call& call) const;
  int64_t useful_threads(const Run& run) const;

  std::shared_ptr<const Program> program_;
  std::vector<Step> steps_;
  std::vector<size_t> makers_;  // of every step: its instruction
  std::vector<OutputInfo> outputs_;
  std::vector<std::shared_ptr<const AlignedBytes>> padding_;  // pixels of zero points
  int64_t bytes_ = 0, threads_;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Run>> idle_;
};

}  // namespace sparseq::network
