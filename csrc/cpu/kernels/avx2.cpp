// The headers that the kernels need are included before the instruction set is chosen. If functions of the
// standard library were compiled for it, the linker could take that copy for the whole program.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#include "../../cell.h"

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

template <class T, class W>
const Kernels<T, W>& kernels_avx2() {
  static constexpr Kernels<T, W> kernels = make_kernels<T, W>();
  return kernels;
}
template const Kernels<double, double>& kernels_avx2();
template const Kernels<float, float>& kernels_avx2();
template const Kernels<float, BFloat16>& kernels_avx2();
template const Kernels<float, Half>& kernels_avx2();
}  // namespace fusedlstm::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
