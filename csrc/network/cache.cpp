#include "cache.h"

#include <algorithm>

namespace sparseq::network {
namespace {

// The one that satisfies `is`, moved to the front, or null.
template <class T, class Is>
T* to_front(std::vector<T>& all, Is is) {
  const auto found = std::find_if(all.begin(), all.end(), is);
  if (found == all.end()) return nullptr;
  std::rotate(all.begin(), found, found + 1);
  return &all.front();
}

template <class T>
void put_front(std::vector<T>& all, T one, size_t most) {
  if (all.size() == most) all.pop_back();
  all.insert(all.begin(), std::move(one));
}

}  // namespace

Cache::Entry* Cache::find(const std::string& text) {
  return to_front(entries_, [&](const Entry& e) { return e.text == text; });
}

std::shared_ptr<const Plan>* Cache::find(Entry& entry, const Key& key) {
  auto* found = to_front(entry.plans, [&](const auto& of_key) { return of_key.first == key; });
  return found ? &found->second : nullptr;
}

void Cache::keep(const std::string& text, std::shared_ptr<const Program> program, const Key& key,
                 std::shared_ptr<const Plan> plan) {
  if (!find(text)) put_front(entries_, Entry{text, std::move(program), {}}, kPrograms);
  Entry& entry = entries_.front();
  if (!find(entry, key)) put_front(entry.plans, {key, std::move(plan)}, kPlans);
}

}  // namespace sparseq::network
