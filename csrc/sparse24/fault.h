// Whether a weight on the device is 2:4: the one thing that packing has to wait for.
#pragma once

#include "../core/cuda.h"
#include "launch.h"

namespace sparseq {

class FaultWord {
 public:
  FaultWord(const Tensor& like, cudaStream_t stream) : word_(empty_on(like, {1}, ScalarType::Long)), stream_(stream) {
    STD_CUDA_CHECK(cudaMemsetAsync(data(), 0xff, sizeof(uint64_t), stream));  // cuda::kNoFault
  }
  uint64_t* data() { return static_cast<uint64_t*>(word_.mutable_data_ptr()); }
  // Waits for the stream.
  Fault24 read(const Shape24& shape) {
    uint64_t word = cuda::kNoFault;
    STD_CUDA_CHECK(cudaMemcpyAsync(&word, data(), sizeof word, cudaMemcpyDeviceToHost, stream_));
    STD_CUDA_CHECK(cudaStreamSynchronize(stream_));
    return cuda::fault_of(word, shape);
  }

 private:
  Tensor word_;
  cudaStream_t stream_;
};

}  // namespace sparseq
