// Everything that the body needs is included first: code of the standard library must not be compiled for
// avx2, since the linker may pick that copy for the whole program.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernel.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#include "../cell.h"

namespace fusedlstm::cpu {
namespace {
constexpr int kVectorBytes = 32;
constexpr int kAccumulators = 12;
#include "kernel_impl.h"
}  // namespace

template <class T>
const Kernel<T>& kernel_avx2() {
  static constexpr Kernel<T> kernel = make_kernel<T>("avx2");
  return kernel;
}
template const Kernel<float>& kernel_avx2();
template const Kernel<double>& kernel_avx2();
}  // namespace fusedlstm::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
