// AVX-512.
#include "kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma")
#endif

#include "../../kept.h"

namespace fusedlstm::cpu {
namespace {
#include "avx512.inl"
}  // namespace

constinit const KernelSet avx512_kernels = make_kernel_set();
}  // namespace fusedlstm::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
