// AVX2, with FMA and F16C.
#include "kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#include "../../kept.h"

namespace fusedlstm::cpu {
namespace {
constexpr int kVectorBytes = 32;
constexpr int kAccumulators = 12;
#define FUSEDLSTM_WIDEN_BFLOAT16(p) \
  _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16)
#define FUSEDLSTM_WIDEN_HALF(p) _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))
#include "kernels.inl"
#undef FUSEDLSTM_WIDEN_BFLOAT16
#undef FUSEDLSTM_WIDEN_HALF
}  // namespace

constinit const KernelSet avx2_kernels = make_kernel_set();
}  // namespace fusedlstm::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
