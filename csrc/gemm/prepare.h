// The input of one product as its kernels read it: u8 pixels, quantised, shifted and transposed in one pass.
#pragma once

#include <cstdlib>
#include <new>

#include "arguments.h"
#include "runs.h"

namespace sparseq::gemm {

// Memory of one call.
class Scratch {
 public:
  explicit Scratch(size_t size) : size_((size + 63) / 64 * 64) {
    if (size_ == 0) return;
    data_ = static_cast<uint8_t*>(size_ < kRecycled ? std::aligned_alloc(64, size_) : take_block(size_));
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Scratch() {
    if (size_ < kRecycled)
      std::free(data_);
    else
      give_block(data_, size_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  uint8_t* data() { return data_; }

 private:
  size_t size_;
  uint8_t* data_ = nullptr;
};

class Prepared {
 public:
  // padded: whether some window reaches over the border, so that a pixel of zero points is needed
  Prepared(const Arguments& a, const Tensor& x, const Pixels& p, bool padded);
  Input input;
  Epilogue epilogue;  // what x decides of it: multiplier, zero points, row scales

 private:
  static Scratch room(const Arguments& a, const Tensor& x, const Pixels& p, const Runs& runs, bool padded);
  static bool ready(const Arguments& a, const Tensor& x, const Pixels& p, const Runs& runs);
  void fill(const Arguments& a, const Tensor& x, const Pixels& p, uint8_t* to);

  Runs runs_;
  Scratch scratch_;
};

}  // namespace sparseq::gemm
