// What every instruction set compiles. The including file has set the instruction set and, in an anonymous
// namespace of fusedlstm::cpu, kVectorBytes and kAccumulators (vectors of sums that fit the registers beside
// their operands).

#include "gemm.inl"

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
template <class T>
FUSEDLSTM_HOST_DEVICE void store_gates(T* out, const Gates<Vec<T>>& gates, int64_t H, int64_t units) {
  store(out, gates.i, units);
  store(out + H, gates.f, units);
  store(out + 2 * H, gates.g, units);
  store(out + 3 * H, gates.o, units);
}

#include "backward.inl"
#include "forward.inl"

// GateGemm says how the products of the gates are made (forward.inl).
template <class T, class W, class GateGemm = VectorGateGemm<T, W>>
constexpr Kernels<T, W> make_kernels() {
  return {.lanes = kLanes<T>,
          .nr = kNR<T>,
          .cached_depth = GateGemm::kCachedDepth,
          .forward_workspace = forward_workspace_of_thread<GateGemm>,
          .pack_gates = GateGemm::pack,
          .input_gates = input_gates<T, W, GateGemm>,
          .forward_step = forward_step<T, W, GateGemm>,
          .project = project<T, W>,
          .pack_panels = pack_panels<T>,
          .transpose = transpose<T>,
          .backward_project = backward_project<T>,
          .backward_step = backward_step<T>,
          .gemm = gemm<T>,
          .gemm_unpacked = gemm_unpacked<T>};
}

constexpr KernelSet make_kernel_set() {
  return {make_kernels<double, double>(), make_kernels<float, float>(), make_kernels<float, BFloat16>(),
          make_kernels<float, Half>()};
}
