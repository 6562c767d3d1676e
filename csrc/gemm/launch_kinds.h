// The INT8 products by kind of weight, each compiled in a file of its own.
#pragma once

#include "launch.h"

namespace sparseq::gemm::cuda {

void dense_product(const CudaTiling& tiling, const uint8_t* tiles, const Rows& x, const Finish& finish, const Cut& cut,
                   void* workspace, cudaStream_t stream);
void sparse_product(const CudaTiling& tiling, const uint8_t* tiles, const Rows& x, const Finish& finish, const Cut& cut,
                    void* workspace, cudaStream_t stream);

}  // namespace sparseq::gemm::cuda
