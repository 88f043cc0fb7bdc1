// Everything that the body needs is included first: code of the standard library must not be compiled for
// avx512, since the linker may pick that copy for the whole program.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernel.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma")
#endif

#include "../cell.h"

namespace fusedlstm::cpu {
namespace {
#include "avx512_impl.h"
}  // namespace

template <class T, class W>
const Kernel<T, W>& kernel_avx512() {
  static constexpr Kernel<T, W> kernel = make_kernel<T, W>();
  return kernel;
}
template const Kernel<double, double>& kernel_avx512();
template const Kernel<float, float>& kernel_avx512();
template const Kernel<float, BFloat16>& kernel_avx512();
template const Kernel<float, Half>& kernel_avx512();
}  // namespace fusedlstm::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
