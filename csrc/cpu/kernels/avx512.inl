// What AVX-512 is set to with and without AMX. Included by avx512.cpp and amx.inl alone, in an anonymous
// namespace.
constexpr int kVectorBytes = 64;
constexpr int kAccumulators = 24;
#define FUSEDLSTM_WIDEN_BFLOAT16(p)                                                                         \
  _mm512_maskz_slli_epi32(                                                                                  \
      0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), \
      16)
#define FUSEDLSTM_WIDEN_HALF(p) \
  _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))
#include "kernels.inl"
#undef FUSEDLSTM_WIDEN_BFLOAT16
#undef FUSEDLSTM_WIDEN_HALF
