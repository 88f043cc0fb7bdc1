// Everything that the body needs is included first: code of the standard library must not be compiled for
// amx, since the linker may pick that copy for the whole program.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(                                                                       \
    __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16,fma"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16,fma")
#endif

#include "../cell.h"

namespace fusedlstm::cpu {
namespace {
constexpr int kVectorBytes = 64;
constexpr int kAccumulators = 24;
#define FUSEDLSTM_WIDEN_BFLOAT16(p)                                                                         \
  _mm512_maskz_slli_epi32(                                                                                  \
      0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), \
      16)
#define FUSEDLSTM_WIDEN_HALF(p) \
  _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))
#define FUSEDLSTM_TILES
#include "kernel_impl.h"
#undef FUSEDLSTM_TILES
#undef FUSEDLSTM_WIDEN_BFLOAT16
#undef FUSEDLSTM_WIDEN_HALF
}  // namespace

const Kernel<float, BFloat16>& kernel_amx() {
  static constexpr Kernel<float, BFloat16> kernel = make_kernel<float, BFloat16>();
  return kernel;
}
}  // namespace fusedlstm::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
