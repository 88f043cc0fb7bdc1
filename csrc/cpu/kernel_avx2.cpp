// Everything that the body needs is included first: code of the standard library must not be compiled for
// avx2, since the linker may pick that copy for the whole program.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#include "../cell.h"

namespace fusedlstm::cpu {
namespace {
constexpr int kVectorBytes = 32;
constexpr int kAccumulators = 12;
#define FUSEDLSTM_WIDEN_BFLOAT16(p) \
  _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16)
#define FUSEDLSTM_WIDEN_HALF(p) _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))
#include "kernel_impl.h"
#undef FUSEDLSTM_WIDEN_BFLOAT16
#undef FUSEDLSTM_WIDEN_HALF
}  // namespace

template <class T, class W>
const Kernel<T, W>& kernel_avx2() {
  static constexpr Kernel<T, W> kernel = make_kernel<T, W>();
  return kernel;
}
template const Kernel<double, double>& kernel_avx2();
template const Kernel<float, float>& kernel_avx2();
template const Kernel<float, BFloat16>& kernel_avx2();
template const Kernel<float, Half>& kernel_avx2();
}  // namespace fusedlstm::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
