// Intel AMX's tile registers: eight of up to 16 rows of 64 bytes, and the product of two of bytes (Intel SDM volume 1,
// chapter 18). Their instructions are written out: gcc 12's intrinsics tell the compiler nothing of the memory they
// read and write. With SPARSEQ_PORTABLE_INTRINSICS the same in plain C++.
//
// While a core's other hardware thread is busy, tile instructions wait for each other, as if there were hardly a spare
// register for what the next one yields; registers left unconfigured are such. Nanoseconds for four products (Xeon,
// family 6, model 167, at 2.5 GHz; alone 29 to 31 in any case):
//
//   registers   8     7    6    5    4   (and loads  4  4  5  5.3  6)
//   shared    130    94   80   67   60
#pragma once
#include <cstdint>
#include <cstring>

namespace {

// Tiles 0 to 3: sums, 16 x 16 int32. 4 and 5: 16 rows of activations. 6 and 7: weights, [inputs / 4][16 channels][4].
struct AmxTiles {
#ifndef SPARSEQ_PORTABLE_INTRINSICS
  struct alignas(64) Shape {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  };

  // Of this thread, until the object ends; inputs: of a step, at most 64 and a multiple of 4; used: bits of registers.
  AmxTiles(int64_t inputs, unsigned used) {
    Shape shape;
    for (int t = 0; t < 8; ++t) {
      if ((used >> t & 1) == 0) continue;
      shape.row_bytes[t] = static_cast<uint16_t>(t == 4 || t == 5 ? inputs : 64);
      shape.rows[t] = static_cast<uint8_t>(t >= 6 ? inputs / 4 : 16);
    }
    asm volatile("ldtilecfg %0" ::"m"(shape));
  }
  ~AmxTiles() { asm volatile("tilerelease" ::); }

  // Whether the core's other thread is busy: by the time of some products beside that of multiplications one after the
  // other, which it does not slow. Looked at anew after 2^18 ticks, about a tenth of a millisecond.
  static bool shared() {
    thread_local uint64_t looked = 0;
    thread_local bool busy = false;
    if (const uint64_t now = ticks(); now - looked > (1 << 18)) {
      alignas(64) static const uint8_t bytes[1024] = {};
      const AmxTiles tiles(64, 0xff);
      const auto step = [&] {
        load<6>(bytes, 64), load<7>(bytes, 64), load<4>(bytes, 64), load<5>(bytes, 64);
        dot<0, 4, 6>(), dot<1, 4, 7>(), dot<2, 5, 6>(), dot<3, 5, 7>();
      };
      step();
      const uint64_t begin = ticks();
      step(), step();
      const uint64_t middle = ticks();
      uint64_t product = begin;
      for (int i = 0; i < 64; ++i) asm volatile("imul %0, %0" : "+r"(product));
      looked = ticks();
      busy = middle - begin > 2 * (looked - middle);
    }
    return busy;
  }

  template <int T>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
  }
  template <int T>
  static void start(const int32_t* row) {  // every row of sums
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(row), "r"(int64_t{0}), "i"(T) : "memory");
  }
  template <int T>
  static void load(const uint8_t* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
  }
  template <int T>
  static void store(int32_t* to, int64_t stride) {  // bytes
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
  }
  template <int C, int A, int B>
  static void dot() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }

 private:
  static uint64_t ticks() {  // after all that is before
    uint32_t low, high;
    asm volatile("lfence\n\trdtsc\n\tlfence" : "=a"(low), "=d"(high)::"memory");
    return uint64_t{high} << 32 | low;
  }
#else
  struct Registers {
    int64_t inputs;
    int32_t sums[4][16][16];
    uint8_t activations[2][16][64];
    int8_t weights[2][16][64];
  };
  static Registers& registers() {
    thread_local Registers r;
    return r;
  }
  AmxTiles(int64_t inputs, unsigned) { registers().inputs = inputs; }
  static bool shared() {  // in turns, so that tests see both
    thread_local bool busy = false;
    return busy = !busy;
  }
  template <int T>
  static void zero() {
    std::memset(registers().sums[T], 0, sizeof registers().sums[T]);
  }
  template <int T>
  static void start(const int32_t* row) {
    for (auto& to : registers().sums[T]) std::memcpy(to, row, sizeof to);
  }
  template <int T>
  static void load(const uint8_t* from, int64_t stride) {
    Registers& r = registers();
    const auto row = [&](int64_t i, int64_t bytes) {
      std::memcpy(T < 6 ? static_cast<void*>(r.activations[T % 2][i]) : r.weights[T % 2][i], from + i * stride,
                  static_cast<std::size_t>(bytes));
    };
    for (int64_t i = 0; i < (T < 6 ? 16 : r.inputs / 4); ++i) row(i, T < 6 ? r.inputs : 64);
  }
  template <int T>
  static void store(int32_t* to, int64_t stride) {
    for (int64_t i = 0; i < 16; ++i) std::memcpy(to + i * stride / 4, registers().sums[T][i], 64);
  }
  template <int C, int A, int B>
  static void dot() {
    Registers& r = registers();
    for (int m = 0; m < 16; ++m)
      for (int n = 0; n < 16; ++n)
        for (int64_t k = 0; k < r.inputs; ++k)
          r.sums[C][m][n] += r.activations[A - 4][m][k] * r.weights[B - 6][k / 4][4 * n + k % 4];
  }
#endif
};

}  // namespace
