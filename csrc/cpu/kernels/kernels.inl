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

// Whether t is the first or last step of a row in the direction's order.
template <class Args>
FUSEDLSTM_HOST_DEVICE bool is_first(const Args& args, int64_t t, int64_t row) {
  return t == (args.reverse ? args.rows.length[row] - 1 : 0);
}
template <class Args>
FUSEDLSTM_HOST_DEVICE bool is_last(const Args& args, int64_t t, int64_t row) {
  return t == (args.reverse ? 0 : args.rows.length[row] - 1);
}

// Whether step t starts from states of zero. In the reverse direction that is so if step t + 1 begins the
// next segment.
template <class Args>
FUSEDLSTM_HOST_DEVICE bool enters_segment(const Args& args, int64_t t, int64_t row) {
  if (args.rows.resets == nullptr) return false;
  const int64_t begin = args.reverse ? t + 1 : t;
  return begin < args.rows.length[row] && args.rows.resets[begin * args.size.batch + row];
}
// The cell state before step t.
template <class Args>
FUSEDLSTM_HOST_DEVICE auto c_before(const Args& args, int64_t t, int64_t row, int64_t cells_step)
    -> decltype(args.c0) {
  if (enters_segment(args, t, row)) return args.zeros;
  if (is_first(args, t, row)) return args.c0 + row * args.size.hidden;
  return args.cells + (args.reverse ? t + 1 : t - 1) * cells_step + row * args.cells_stride;
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
          .gemm = gemm<T>};
}
