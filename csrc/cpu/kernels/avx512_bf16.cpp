// AVX512_BF16: products of bfloat16. The other types have those of AVX-512.
#include "kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,fma")
#endif

#include "../../kept.h"

namespace fusedlstm::cpu {
namespace {
#include "pairs.inl"
}  // namespace

constinit const BFloat16Kernels avx512_bf16_kernels = make_bfloat16_kernels<PairPanels>();
}  // namespace fusedlstm::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
