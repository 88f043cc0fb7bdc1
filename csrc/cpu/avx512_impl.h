// What is the same with and without AMX. Included by kernel_avx512.cpp and kernel_amx.cpp alone, in an
// anonymous namespace.
constexpr int kVectorBytes = 64;
constexpr int kAccumulators = 24;
#define FUSEDLSTM_WIDEN_BFLOAT16(p)                                                                         \
  _mm512_maskz_slli_epi32(                                                                                  \
      0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), \
      16)
#define FUSEDLSTM_WIDEN_HALF(p) \
  _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))
#include "kernel_impl.h"
#undef FUSEDLSTM_WIDEN_BFLOAT16
#undef FUSEDLSTM_WIDEN_HALF
