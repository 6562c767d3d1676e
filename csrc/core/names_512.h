// AVX-512's names: the compiler's, or SIMDe's with SPARSEQ_PORTABLE_INTRINSICS.
#pragma once

#ifdef SPARSEQ_PORTABLE_INTRINSICS
#define SPARSEQ_512(name) simde_mm512_##name
#else
#define SPARSEQ_512(name) _mm512_##name
#endif
