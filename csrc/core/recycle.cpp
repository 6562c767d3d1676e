#include "recycle.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <deque>
#include <mutex>
#include <new>

namespace sparseq {
namespace {

constexpr std::size_t kHugePage = std::size_t(2) << 20;

std::size_t rounded(std::size_t size) { return (size + kHugePage - 1) / kHugePage * kHugePage; }

struct Shelf {
  struct Block {
    void* data;
    std::size_t size;
  };
  std::mutex mutex;
  std::deque<Block> blocks;  // oldest first
  std::size_t held = 0, most = std::size_t(256) << 20;
  Shelf() {
    if (const char* text = std::getenv("SPARSEQ_RECYCLE_MB")) most = std::strtoull(text, nullptr, 10) << 20;
  }
};

// Never destroyed: tensors may outlive every static object.
Shelf& shelf() {
  static auto* it = new Shelf;
  return *it;
}

}  // namespace

void* take_block(std::size_t asked) {
  const std::size_t size = rounded(asked);
  Shelf& s = shelf();
  {
    const std::lock_guard lock(s.mutex);
    for (auto block = s.blocks.rbegin(); block != s.blocks.rend(); ++block) {
      if (block->size != size) continue;
      void* data = block->data;
      s.blocks.erase(std::next(block).base());
      s.held -= size;
      return data;
    }
  }
  void* data = std::aligned_alloc(kHugePage, size);
  if (data == nullptr) throw std::bad_alloc();
#if defined(__linux__)
  // Only advice. The last huge page would be touched whole: it is one where more than half of it is asked for.
  madvise(data, (asked + kHugePage / 2) / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return data;
}

void give_block(void* block, std::size_t size) noexcept {
  size = rounded(size);
  Shelf& s = shelf();
  const std::lock_guard lock(s.mutex);
  if (size > s.most) {
    std::free(block);
    return;
  }
  while (s.held + size > s.most) {
    s.held -= s.blocks.front().size;
    std::free(s.blocks.front().data);
    s.blocks.pop_front();
  }
  s.blocks.push_back({block, size});
  s.held += size;
}

void empty_cache() noexcept {
  Shelf& s = shelf();
  const std::lock_guard lock(s.mutex);
  for (const Shelf::Block& block : s.blocks) std::free(block.data);
  s.blocks.clear();
  s.held = 0;
}

}  // namespace sparseq
