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
#pragma clang attribute push(                                                                       \
    __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16,fma"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16,fma")
#endif

#include "../../cell.h"

namespace fusedlstm::cpu {
namespace {
#include "amx.inl"
}  // namespace

const Kernels<float, BFloat16>& kernels_amx() {
  static constexpr Kernels<float, BFloat16> kernels = make_kernels<float, BFloat16, AmxGateGemm>();
  return kernels;
}
}  // namespace fusedlstm::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
