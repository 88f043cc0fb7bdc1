// What every instruction set compiles. The including file has set the instruction set and, in an anonymous
// namespace of fusedlstm::cpu, kVectorBytes and kAccumulators (vectors of sums that fit the registers beside
// their operands).

#include "panels.inl"

// Calls function(row, count) for the rows of a share that are active in step t, in row blocks of at most kMC.
template <class T, class Function>
void for_each_row_block(const Rows& rows, int64_t t, const Share<T>& share, const Function& function) {
  int64_t left = rows.active[t] - share.row_first;
  left = left <= 0 ? 0 : (left + share.row_stride - 1) / share.row_stride;
  for (int64_t at = share.row_first; left > 0;) {
    const int64_t count = next_mc(left);
    int64_t row[kMC];
    for (int64_t r = 0; r < count; ++r, at += share.row_stride) row[r] = rows.order[at];
    function(row, count);
    left -= count;
  }
}

// Stores one vector of units of each gate; gates are H elements apart.
template <class S, class V>
FUSEDLSTM_HOST_DEVICE void store_gates(S* out, const Gates<V>& gates, int64_t H, int64_t units) {
  store_factor(out, gates.i, units);
  store_factor(out + H, gates.f, units);
  store_factor(out + 2 * H, gates.g, units);
  store_factor(out + 3 * H, gates.o, units);
}

template <class T, class S>
FUSEDLSTM_HOST_DEVICE Gates<Vec<T>> load_gates(const S* in, int64_t H, int64_t units) {
  return {widened<T>(in, units), widened<T>(in + H, units), widened<T>(in + 2 * H, units),
          widened<T>(in + 3 * H, units)};
}

// Gates that are kept for the backward pass: activated, and in 16 bits as kept.h writes them.
template <class S, class V>
FUSEDLSTM_HOST_DEVICE void store_kept(S* out, const Gates<V>& gates, int64_t H, int64_t units) {
  if constexpr (sizeof(S) == 2)
    store_gates(out, as_kept<VectorSigns>(gates), H, units);
  else
    store_gates(out, gates, H, units);
}
template <class T, class S>
FUSEDLSTM_HOST_DEVICE Gates<Vec<T>> load_kept(const S* in, int64_t H, int64_t units) {
  const Gates<Vec<T>> gates = load_gates<T>(in, H, units);
  if constexpr (sizeof(S) == 2)
    return from_kept<VectorSigns>(gates);
  else
    return gates;
}

#include "backward.inl"
#include "forward.inl"

template <class T, class W, class Panels = VectorPanels<T, W>>
constexpr ForwardKernels<T, W> make_forward_kernels() {
  return {{.lanes = kLanes<T>, .panel_row_bytes = Panels::kRowBytes},
          Panels::kPackedFrom,
          forward_workspace_of_thread<T, W, Panels>,
          pack_gates<T, W, Panels>,
          input_gates<T, W, Panels>,
          forward_step<T, W, Panels>,
          project<T, W>};
}

template <class T, class W, class Panels = VectorPanels<T, W>>
constexpr BackwardKernels<T, W> make_backward_kernels() {
  return {{.lanes = kLanes<T>, .panel_row_bytes = Panels::kRowBytes},
          kNR<T>,
          Panels::packed_depth,
          Panels::template workspace<W>,
          pack_panels<T, W, Panels>,
          transpose<T, W, Panels>,
          backward_project<T, W, Panels>,
          backward_step<T, W, Panels>,
          gemm<T, W, Panels>,
          gemm_unpacked<T, W>};
}

constexpr KernelSet make_kernel_set() {
  return {make_forward_kernels<double, double>(),  make_forward_kernels<float, float>(),
          make_forward_kernels<float, BFloat16>(), make_forward_kernels<float, Half>(),
          make_backward_kernels<double, double>(), make_backward_kernels<float, float>(),
          make_backward_kernels<float, BFloat16>()};
}

// Those of bfloat16 with other panels.
template <class Panels>
constexpr BFloat16Kernels make_bfloat16_kernels() {
  return {make_forward_kernels<float, BFloat16, Panels>(), make_backward_kernels<float, BFloat16, Panels>()};
}
