// The body of kernel_*.cpp. The including file has set the instruction set and, in an anonymous namespace of
// fusedlstm::cpu, kVectorBytes and kAccumulators (how many vectors of sums fit the registers beside
// operands).

#include "product_impl.h"

// Calls function(row, count) for the rows of a share that are active in step t, in groups.
template <class T, class Function>
void for_each_group(const Rows& rows, int64_t t, const Share<T>& share, const Function& function) {
  int64_t left = rows.active[t] - share.row_first;
  left = left <= 0 ? 0 : (left + share.row_stride - 1) / share.row_stride;
  for (int64_t at = share.row_first; left > 0;) {
    const int64_t count = group_rows(left);
    int64_t row[kGroupRows];
    for (int64_t r = 0; r < count; ++r, at += share.row_stride) row[r] = rows.order[at];
    function(row, count);
    left -= count;
  }
}

// The step that a row takes first in its own direction has h0 and c0 before it.
template <class Args>
FUSEDLSTM_HOST_DEVICE bool is_first(const Args& args, int64_t t, int64_t row) {
  return t == (args.reverse ? args.rows.length[row] - 1 : 0);
}
template <class Args>
FUSEDLSTM_HOST_DEVICE bool is_last(const Args& args, int64_t t, int64_t row) {
  return t == (args.reverse ? 0 : args.rows.length[row] - 1);
}

// A segment is entered from states of zero: in the reverse direction, where the step after t begins the next.
template <class Args>
FUSEDLSTM_HOST_DEVICE bool enters_segment(const Args& args, int64_t t, int64_t row) {
  if (args.rows.resets == nullptr) return false;
  const int64_t begin = args.reverse ? t + 1 : t;
  return begin < args.rows.length[row] && args.rows.resets[begin * args.size.batch + row];
}
// The cell state before step t.
template <class Args>
FUSEDLSTM_HOST_DEVICE auto cell_before(const Args& args, int64_t t, int64_t row, int64_t c_step)
    -> decltype(args.c0) {
  if (enters_segment(args, t, row)) return args.zeros;
  if (is_first(args, t, row)) return args.c0 + row * args.size.hidden;
  return args.c + (args.reverse ? t + 1 : t - 1) * c_step + row * args.c_stride;
}

#include "backward_impl.h"
#include "forward_impl.h"

template <class T, class W>
int64_t forward_room(const Sizes& size) {
  return gate_rows_room<T, W>(size.input) + gate_rows_room<T, W>(size.outputs);
}

template <class T, class W>
constexpr Kernel<T, W> make_kernel() {
  return {.lanes = kLanes<T>,
          .panel_columns = kPanelColumns<T>,
          .near_terms = kNearTerms<T, W>,
          .room = forward_room<T, W>,
          .pack_gates = pack_gates<T, W>,
          .input_gates = input_gates<T, W>,
          .forward_step = forward_step<T, W>,
          .project = project<T, W>,
          .pack_panels = pack_panels<T>,
          .transpose = transpose<T>,
          .backward_project = backward_project<T>,
          .backward_step = backward_step<T>,
          .product = product<T>};
}
