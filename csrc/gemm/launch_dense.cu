#include "launch_kinds.h"
#include "launch_product.cuh"

namespace sparseq::gemm::cuda {

void dense_product(const CudaTiling& tiling, const uint8_t* tiles, const Rows& x, const Finish& finish, const Cut& cut,
                   void* workspace, cudaStream_t stream) {
  if (x.is_signed)
    launch_product<DenseInt8<true>>(tiling, tiles, x, finish, cut, workspace, stream);
  else
    launch_product<DenseInt8<false>>(tiling, tiles, x, finish, cut, workspace, stream);
}

}  // namespace sparseq::gemm::cuda
