// The 2:4 ops on a CUDA device: pointers in, kernels launched on a stream. No torch header. Nothing waits for the
// device; what is wrong with a weight comes back in a word of its memory, which only the caller reads.
#pragma once

#include <cuda_runtime_api.h>

#include "format.h"

namespace sparseq::cuda {

// The first fault, in the order of rows and groups, as (row * (groups + 1) + group) * 4 + its Format24;
// kNoFault, all bits set, before the launch and where there is none.
constexpr uint64_t kNoFault = ~uint64_t{0};
Fault24 fault_of(uint64_t word, const Shape24& shape);

// As the functions of the same names in format.h, for all outputs or rows.
template <class T>
void mask_24(const T* weight, T infinity, uint8_t* mask, const Shape24& shape, cudaStream_t stream);
template <class T>
void pack_24(const T* weight, const Shape24& shape, T* values, uint8_t* indices, uint64_t* fault, cudaStream_t stream);
template <class T>
void unpack_24(const T* values, const uint8_t* indices, const Shape24& shape, T* weight, uint64_t* fault,
               cudaStream_t stream);

}  // namespace sparseq::cuda
