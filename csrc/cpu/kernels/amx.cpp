// AMX for bfloat16, on AVX-512.
#include "kernels.h"

// A build for processors without AMX names a header with the tile instructions in C++.
#ifdef FUSEDLSTM_EMULATED_TILES
#include FUSEDLSTM_EMULATED_TILES
#endif

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(                                                                       \
    __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16,fma"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16,fma")
#endif

#include "../../kept.h"

namespace fusedlstm::cpu {
namespace {
#include "amx.inl"
}  // namespace

constinit const BFloat16Kernels amx_kernels = make_bfloat16_kernels<TilePanels>();
}  // namespace fusedlstm::cpu

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
