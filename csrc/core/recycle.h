// Memory for large outputs, kept for the next one of its size. No torch.
//
// malloc gives blocks of more than 32 MiB back to the system at once, so that every large output is fresh
// memory: a page fault every 4 KiB, several times the work of an elementwise kernel. A training loop asks
// for the same sizes again and again.
#pragma once

#include <cstddef>

namespace sparseq {

constexpr std::size_t kRecycled = std::size_t(4) << 20;  // bytes: smaller outputs are malloc's business

// `size` bytes at a multiple of 2 MiB, on huge pages where the system has some and they are more
// than half full. Throws std::bad_alloc.
void* take_block(std::size_t size);

// Keeps the block for take_block, within SPARSEQ_RECYCLE_MB (256; 0 keeps nothing), oldest freed first.
void give_block(void* block, std::size_t size) noexcept;

// Frees what is kept.
void empty_cache() noexcept;

}  // namespace sparseq
