// Programs and plans of earlier calls. No torch.
#pragma once

#include "plan.h"

namespace sparseq::network {

// The tensors that a plan was made for, and how it was to run: all that it rests on, as one list.
using Key = std::vector<int64_t>;

class Cache {
 public:
  // The program of this text with the plan of this key; make(program) where there is none. Thread-safe; plans may be
  // made twice at a time, and those in use outlive their place here.
  template <class Make>
  std::shared_ptr<const Plan> plan(const std::string& text, const Key& key, Make make) {
    std::shared_ptr<const Program> program;
    {
      const std::lock_guard lock(mutex_);
      if (Entry* entry = find(text)) {
        if (auto* plan = find(*entry, key)) return *plan;
        program = entry->program;
      }
    }
    if (!program) program = std::make_shared<const Program>(parse_program(text));
    std::shared_ptr<const Plan> made = make(program);
    const std::lock_guard lock(mutex_);
    keep(text, std::move(program), key, made);
    return made;
  }

 private:
  static constexpr size_t kPrograms = 64, kPlans = 16;  // of each program; those used last are kept
  struct Entry {
    std::string text;
    std::shared_ptr<const Program> program;
    std::vector<std::pair<Key, std::shared_ptr<const Plan>>> plans;  // used last first
  };
  Entry* find(const std::string& text);
  static std::shared_ptr<const Plan>* find(Entry& entry, const Key& key);
  void keep(const std::string& text, std::shared_ptr<const Program> program, const Key& key,
            std::shared_ptr<const Plan> plan);

  std::mutex mutex_;
  std::vector<Entry> entries_;  // used last first
};

}  // namespace sparseq::network
