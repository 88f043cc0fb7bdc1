// The work of one thread: a table of functions, compiled once for each instruction set.
#pragma once

// All headers that kernels need come before the instruction set is chosen: if functions of the standard
// library were compiled for it, the linker could take that copy for the whole program.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../args.h"
#include "../caches.h"

namespace fusedlstm::cpu {

// Depth that a panel's sums cover between two additions to memory (BLIS: KC). Half a panel of this depth fits
// the L1 cache, and the rounding error grows with this length, not with the whole depth.
constexpr int64_t kKC = 128;

// Lanes of the longest vector of any instruction set. Packed matrices and workspaces are padded for it.
constexpr int64_t kMaxLanes = 16;

// How a policy of panels (panels.inl) divides a product.
struct Blocking {
  int64_t lanes;            // of a vector
  int64_t panel_row_bytes;  // bytes of a panel for each k of the matrix

  // Panels of this depth that stay in a core's own cache (BLIS: NC / NR).
  int64_t nc_panels(int64_t depth) const {
    return std::max<int64_t>(1, cached_weight_bytes() / (panel_row_bytes * std::max<int64_t>(depth, 1)));
  }
};

// A unit block is one vector, for gates and projection.
template <class T, class W>
struct ForwardKernels : Blocking {
  PackedFrom packed_from;  // of both passes: float16 has no backward kernels

  int64_t (*workspace)(const Sizes&);  // elements for one thread

  // Packs W_ih or W_hh: a panel has all four gates of a unit block.
  void (*pack_gates)(const W* weight, int64_t hidden, int64_t depth, Range panels, T* packed);
  // gates = biases + x times W_ih, for the steps of a time block.
  void (*input_gates)(const ForwardArgs<T, W>&, Range time_block, const Share<T>&);
  // Gates, cell state and h of step t. h is stored to y, or with a projection to the workspace
  // ForwardArgs::h.
  void (*forward_step)(const ForwardArgs<T, W>&, int64_t t, const Share<T>&);
  // y of step t from that workspace.
  void (*project)(const ForwardArgs<T, W>&, int64_t t, const Share<T>&);
};

template <class T, class W>
struct BackwardKernels : Blocking {
  int64_t nr;  // columns of a panel (BLIS: NR), and width of a unit block

  int64_t (*packed_depth)(int64_t depth);  // elements of a packed column
  int64_t (*workspace)(int64_t depth);     // elements for a row block of this depth

  // Packs a matrix of `depth` rows.
  void (*pack_panels)(const W* const* rows, int64_t depth, int64_t columns, Range panels, T* packed);
  // out [columns, depth]: transposes columns of a matrix of `depth` rows.
  void (*transpose)(const W* const* rows, int64_t depth, Range columns, W* out);
  // grad_p of step t, from grad_y and the gates' gradients of the next step.
  void (*backward_project)(const BackwardArgs<T, W>&, const BackwardWorkspace<T, W>&, Range time_block,
                           int64_t t, const Share<T>&);
  // grad_gates and grad_c of step t.
  void (*backward_step)(const BackwardArgs<T, W>&, const BackwardWorkspace<T, W>&, Range time_block,
                        int64_t t, const Share<T>&);
  // Multiplies a [rows, depth] with a packed matrix, adds `sums` [rows, columns] to the product if `adds`,
  // and writes the result to `out`, rounded to W, or to `sums` if `out` is null. kc as kKC above.
  void (*gemm)(const W* a, int64_t rows, const T* panels, int64_t columns, int64_t depth, int64_t kc,
               bool adds, T* sums, W* out, int64_t out_stride, T* workspace);
  // out [rows, columns] = a [rows, depth] times the rows b [depth, columns], or += with `adds`. Value (r, k)
  // of a is a[r * a_row + k * a_depth].
  void (*gemm_unpacked)(const W* a, int64_t a_row, int64_t a_depth, int64_t rows, const W* const* b,
                        int64_t depth, int64_t columns, bool adds, T* out, int64_t out_stride);
};

// The kernels of one instruction set, for all types. float16 has no backward pass of its own.
using KernelSet =
    std::tuple<ForwardKernels<double, double>, ForwardKernels<float, float>, ForwardKernels<float, BFloat16>,
               ForwardKernels<float, Half>, BackwardKernels<double, double>, BackwardKernels<float, float>,
               BackwardKernels<float, BFloat16>>;
using BFloat16Kernels = std::tuple<ForwardKernels<float, BFloat16>, BackwardKernels<float, BFloat16>>;

extern const KernelSet plain_kernels, avx2_kernels, avx512_kernels;
extern const BFloat16Kernels avx512_bf16_kernels, amx_kernels;

}  // namespace fusedlstm::cpu
