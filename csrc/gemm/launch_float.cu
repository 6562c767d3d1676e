#include "launch_product.cuh"

namespace sparseq::gemm::cuda {

void float_product(Element type, const CudaTiling& tiling, const uint8_t* tiles, const Rows& x, Finish finish,
                   const Cut& cut, void* workspace, cudaStream_t stream) {
  if (type == Element::f16)
    launch_product<SparseFloat<Half>>(tiling, tiles, x, finish, cut, workspace, stream);
  else
    launch_product<SparseFloat<BFloat16>>(tiling, tiles, x, finish, cut, workspace, stream);
}

}  // namespace sparseq::gemm::cuda
