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

namespace fusedlstm::cpu {

// Depth that a panel's sums cover between two additions to memory (BLIS: KC). Half a panel of this depth fits
// the L1 cache, and the rounding error grows with this length, not with the whole depth.
constexpr int64_t kKC = 128;

// Lanes of the longest vector of any instruction set. Packed matrices and workspaces are padded for it.
constexpr int64_t kMaxLanes = 16;

template <class T, class W>
struct Kernels {
  int64_t lanes;         // width of a unit block in the forward pass, for gates and projection: one vector
  int64_t nr;            // columns of a panel (BLIS: NR), and width of a unit block in the backward pass
  int64_t cached_depth;  // depth of all panels together that stay in a core's own cache
  int64_t (*forward_workspace)(const Sizes&);  // elements for one thread

  // Panels that stay in a core's own cache, if each has this depth (BLIS: NC / NR).
  int64_t nc_panels(int64_t depth) const {
    return std::max<int64_t>(1, cached_depth / std::max<int64_t>(depth, 1));
  }

  // Packs W_ih or W_hh: a panel has all four gates of a unit block.
  void (*pack_gates)(const W* weight, int64_t hidden, int64_t depth, Range panels, T* packed);
  // gates = biases + x times W_ih, for the steps of a time block.
  void (*input_gates)(const ForwardArgs<T, W>&, Range time_block, const Share<T>&);
  // Gates, cell state and h of step t. h is stored to y, or with a projection to the workspace
  // ForwardArgs::h.
  void (*forward_step)(const ForwardArgs<T, W>&, int64_t t, const Share<T>&);
  // y of step t from that workspace.
  void (*project)(const ForwardArgs<T, W>&, int64_t t, const Share<T>&);

  // Packs a matrix of `depth` rows.
  void (*pack_panels)(const T* const* rows, int64_t depth, int64_t columns, Range panels, T* packed);
  // out [columns, depth]: transposes columns of a matrix of `depth` rows.
  void (*transpose)(const T* const* rows, int64_t depth, Range columns, T* out);
  // grad_p of step t, from grad_y and the gates' gradients of the next step.
  void (*backward_project)(const BackwardArgs<T>&, const BackwardWorkspace<T>&, Range time_block, int64_t t,
                           const Share<T>&);
  // grad_gates and grad_c of step t.
  void (*backward_step)(const BackwardArgs<T>&, const BackwardWorkspace<T>&, Range time_block, int64_t t,
                        const Share<T>&);
  // out [rows, columns] = a [rows, depth] times a packed matrix, or += with `adds`; kc as kKC above.
  void (*gemm)(const T* a, int64_t rows, const T* panels, int64_t columns, int64_t depth, int64_t kc,
               bool adds, T* out, int64_t out_stride);
  // out [rows, columns] = a [rows, depth] times the rows b [depth, columns], or += with `adds`. Value (r, k)
  // of a is a[r * a_row + k * a_depth].
  void (*gemm_unpacked)(const T* a, int64_t a_row, int64_t a_depth, int64_t rows, const T* const* b,
                        int64_t depth, int64_t columns, bool adds, T* out, int64_t out_stride);
};

// The kernels of one instruction set, for all types.
using KernelSet = std::tuple<Kernels<double, double>, Kernels<float, float>, Kernels<float, BFloat16>,
                             Kernels<float, Half>>;

extern const KernelSet plain_kernels, avx2_kernels, avx512_kernels;
extern const Kernels<float, BFloat16> amx_kernels;

}  // namespace fusedlstm::cpu
