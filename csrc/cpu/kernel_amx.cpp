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
#define FUSEDLSTM_TILES
#include "avx512_impl.h"
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
