// Stands in for the compiler's header where a test runs an ISA that its machine may lack: the same names from SIMDe,
// and here what Debian's SIMDe has not.
#pragma once
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>

#include <cmath>
#include <cstring>

#undef _mm512_madd_epi16
#undef _mm512_fmadd_ps

namespace {

template <class To, class ToLane, class FromLane, int kLanes = 16, class From, class F>
To lanes(const From& a, F f) {
  FromLane in[kLanes];
  ToLane out[kLanes];
  std::memcpy(in, &a, sizeof in);
  for (int i = 0; i < kLanes; ++i) out[i] = static_cast<ToLane>(f(in[i]));
  To r;
  std::memcpy(&r, out, sizeof r);
  return r;
}
template <class To, class ToLane, class FromLane, class From>
To cast_lanes(const From& a) {
  return lanes<To, ToLane, FromLane>(a, [](FromLane x) { return x; });
}

inline __m512i _mm512_cvtepu8_epi32(__m128i a) { return cast_lanes<__m512i, int32_t, uint8_t>(a); }
inline __m512i _mm512_cvtepi8_epi32(__m128i a) { return cast_lanes<__m512i, int32_t, int8_t>(a); }
inline __m512i _mm512_cvtepu16_epi32(__m256i a) { return cast_lanes<__m512i, int32_t, uint16_t>(a); }
inline __m128i _mm512_cvtepi32_epi8(__m512i a) { return cast_lanes<__m128i, uint8_t, uint32_t>(a); }
inline __m256i _mm512_cvtepi32_epi16(__m512i a) { return cast_lanes<__m256i, uint16_t, uint32_t>(a); }
inline __m512 _mm512_cvtepi32_ps(__m512i a) { return cast_lanes<__m512, float, int32_t>(a); }
inline __m512i _mm512_cvtps_epi32(__m512 a) {
  return lanes<__m512i, int32_t, float>(a, [](float x) {
    return std::fabs(x) < 0x1p31f ? static_cast<int64_t>(std::nearbyintf(x)) : int64_t{INT32_MIN};
  });
}
inline __m512i _mm512_madd_epi16(__m512i a, __m512i b) {
  int16_t x[32], y[32];
  int32_t sums[16];
  std::memcpy(x, &a, sizeof x);
  std::memcpy(y, &b, sizeof y);
  for (int i = 0; i < 16; ++i) sums[i] = x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1];
  __m512i r;
  std::memcpy(&r, sums, sizeof r);
  return r;
}
inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {  // SIMDe's may round twice
  float x[16], y[16], z[16];
  std::memcpy(x, &a, sizeof x);
  std::memcpy(y, &b, sizeof y);
  std::memcpy(z, &c, sizeof z);
  for (int i = 0; i < 16; ++i) z[i] = std::fma(x[i], y[i], z[i]);
  __m512 r;
  std::memcpy(&r, z, sizeof r);
  return r;
}
inline __m512 _mm512_cvtph_ps(__m256i a) {
  __m128i half[2];
  __m256 wide[2];
  std::memcpy(half, &a, sizeof half);
  for (int i = 0; i < 2; ++i) wide[i] = _mm256_cvtph_ps(half[i]);
  __m512 r;
  std::memcpy(&r, wide, sizeof r);
  return r;
}
inline __m256i _mm512_cvtps_ph(__m512 a, int mode) {
  (void)mode;  // to nearest
  __m256 wide[2];
  __m128i half[2];
  std::memcpy(wide, &a, sizeof wide);
  for (int i = 0; i < 2; ++i) half[i] = _mm256_cvtps_ph(wide[i], _MM_FROUND_TO_NEAREST_INT);
  __m256i r;
  std::memcpy(&r, half, sizeof r);
  return r;
}

}  // namespace
