// One thread's share of the backward pass. Included by kernels.inl alone.

// Index of (t, row) among the entries of a time block.
FUSEDLSTM_HOST_DEVICE int64_t block_entry(const Rows& rows, Range time_block, int64_t t, int64_t row) {
  return rows.entry(t, row) - rows.offset[time_block.begin];
}

// Gradient of y at step t from grad_y and grad_h_n, for the vector of columns from `column` on.
template <class T, class W>
FUSEDLSTM_HOST_DEVICE Vec<T> output_gradient(const BackwardArgs<T, W>& args, int64_t t, int64_t row,
                                             int64_t column) {
  const int64_t P = args.size.outputs;
  Vec<T> grad{};
  if (column >= P) return grad;
  if (args.grad_y)
    grad += widened<T>(args.grad_y + args.rows.entry(t, row) * args.y_stride + column, P - column);
  if (args.grad_h_n && is_last(args, t, row))
    grad += widened<T>(args.grad_h_n + row * P + column, P - column);
  return grad;
}

// The step that follows t in the direction's order, which the backward pass did before t.
template <class T, class W>
FUSEDLSTM_HOST_DEVICE int64_t step_after(const BackwardArgs<T, W>& args, int64_t t) {
  return args.reverse ? t - 1 : t + 1;
}
// Puts those rows of a row block first whose state after step t the next step takes, and counts them. No
// gradient comes back to the others: their product would be one with zeros, and NaN where a weight is not
// finite.
template <class T, class W>
FUSEDLSTM_HOST_DEVICE int64_t continued_first(const BackwardArgs<T, W>& args, int64_t t, int64_t* row,
                                              int64_t count) {
  int64_t continued = 0;
  for (int64_t r = 0; r < count; ++r)
    if (!is_last(args, t, row[r]) && !enters_segment(args, step_after(args, t), row[r]))
      std::swap(row[r], row[continued++]);
  return continued;
}
// Gradient of the gates of the step after t, for a row that is continued.
template <class T, class W>
FUSEDLSTM_HOST_DEVICE const W* next_grad_gates(const BackwardArgs<T, W>& args,
                                               const BackwardWorkspace<T, W>& workspace, Range time_block,
                                               int64_t t, int64_t row) {
  const int64_t next = step_after(args, t), G = 4 * args.size.hidden;
  if (next < time_block.begin || next >= time_block.end) return workspace.grad_gates_next + row * G;
  return workspace.grad_gates + block_entry(args.rows, time_block, next, row) * G;
}

// Clears tensor [B, parts, columns] for the rows of a share that have an entry in step t and take no part in
// it.
template <class T, class W>
void clear_inactive(const BackwardArgs<T, W>& args, Range time_block, int64_t t, const Share<T>& share,
                    W* tensor, int64_t columns, int64_t parts) {
  const int64_t begin = share.unit_blocks.begin * kNR<T>,
                end = std::min(share.unit_blocks.end * kNR<T>, columns);
  const int64_t entries = args.rows.offset[t + 1] - args.rows.offset[t];
  for (int64_t at = share.row_first; at < entries && begin < end; at += share.row_stride)
    for (int64_t part = 0; at >= args.rows.active[t] && part < parts; ++part)
      std::fill_n(tensor +
                      (block_entry(args.rows, time_block, t, args.rows.order[at]) * parts + part) * columns +
                      begin,
                  end - begin, W{});
}

// Rows [count, depth] of gradients, to be multiplied with the columns of a weight: with their panels, or,
// where `panels` is null, with the weight as it is stored.
template <class T, class W, class Panels>
class ColumnProduct {
 public:
  ColumnProduct(const W* const* rows, int64_t count, int64_t depth, const W* weight, int64_t columns,
                const T* panels, T* workspace)
      : rows_(rows),
        count_(count),
        depth_(depth),
        weight_(weight),
        columns_(columns),
        panels_(panels),
        block_(rows, panels ? count : 0, depth, workspace) {}

  // sum [count, 4 vectors] += the rows times the columns from `column` on.
  void add(int64_t column, T* sum) const {
    if (panels_)
      return block_.multiply(panels_ + column * Panels::packed_depth(depth_),
                             panel_vectors<T>(columns_ - column), sum);
    unpacked_gemm<T, W>([&](int64_t r, int64_t k) { return rows_[r][k]; }, count_, depth_,
                        [&](int64_t k) { return weight_ + k * columns_ + column; },
                        std::min(kNR<T>, columns_ - column), true, sum, kNR<T>);
  }

 private:
  const W* const* rows_;
  int64_t count_, depth_;
  const W* weight_;
  int64_t columns_;
  const T* panels_;
  typename Panels::RowBlock block_;
};

// sum [count, 4 vectors] = gradients of y from `column` on, plus the product for the rows that are continued.
// The product may write past these rows, so the others come after it.
template <class T, class W, class Product>
void add_to_output_gradients(const BackwardArgs<T, W>& args, int64_t t, const int64_t* row, int64_t count,
                             int64_t continued, int64_t column, const Product& product, T* sum) {
  const auto start = [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t v = 0; v < 4; ++v)
        store(sum + (4 * r + v) * kLanes<T>, output_gradient(args, t, row[r], column + v * kLanes<T>));
  };
  start(0, continued);
  product.add(column, sum);
  start(continued, count);
}

template <class T, class W, class Panels>
void backward_project(const BackwardArgs<T, W>& args, const BackwardWorkspace<T, W>& workspace,
                      Range time_block, int64_t t, const Share<T>& share) {
  constexpr int64_t L = kLanes<T>, NR = kNR<T>;
  const int64_t P = args.size.outputs, G = 4 * args.size.hidden;
  clear_inactive(args, time_block, t, share, workspace.grad_p, P, 1);
  for_each_row_block(args.rows, t, share, [&](int64_t* row, int64_t count) {
    const int64_t continued = continued_first(args, t, row, count);
    const W* next[kMC];
    for (int64_t r = 0; r < continued; ++r) next[r] = next_grad_gates(args, workspace, time_block, t, row[r]);
    const typename Panels::Setup setup(workspace.panels_hh ? continued : 0);
    const ColumnProduct<T, W, Panels> product(next, continued, G, args.weight_hh, P, workspace.panels_hh,
                                              share.workspace);
    for (int64_t column = share.unit_blocks.begin * NR; column < std::min(share.unit_blocks.end * NR, P);
         column += NR) {
      alignas(64) T sum[kMC * NR];
      add_to_output_gradients(args, t, row, count, continued, column, product, sum);
      for (int64_t r = 0; r < count; ++r)
        for (int64_t v = 0, at = column; v < panel_vectors<T>(P - column); ++v, at += L)
          store(workspace.grad_p + block_entry(args.rows, time_block, t, row[r]) * P + at,
                load(sum + (4 * r + v) * L), P - at);
    }
  });
}

// A row in step t.
template <class W>
struct BackwardRow {
  int64_t row, block_entry;
  const W* c_prev;
  bool enters, first;  // it starts from states of zero, or from h0 and c0
};

// Derivative of one row and one vector of units; grad_h is the gradient of h before a projection.
template <class T, class W>
FUSEDLSTM_HOST_DEVICE void backward_cells(const BackwardArgs<T, W>& args,
                                          const BackwardWorkspace<T, W>& workspace, int64_t t,
                                          const BackwardRow<W>& at, int64_t unit, Vec<T> grad_h) {
  const int64_t H = args.size.hidden, G = 4 * H, units = H - unit, entry = args.rows.entry(t, at.row);
  const int64_t cell = entry * args.cells_stride + unit;
  const Gates<Vec<T>> gates = load_kept<T>(args.gates + entry * args.gates_stride + unit, H, units);
  T* const grad_c0 = args.grad_c0 + at.row * H + unit;  // gradient of the cell state, from step to step
  Vec<T> grad_c = load(grad_c0, units);
  if (args.grad_cells) grad_c += widened<T>(args.grad_cells + cell, units);
  const CellDerivative<Vec<T>> derivative = cell_derivative<VectorMath<T>>(
      gates, widened<T>(at.c_prev + unit, units), widened<T>(args.cells + cell, units));
  const CellGradient<Vec<T>> grad = cell_gradient(derivative, grad_h, grad_c);
  store_gates(workspace.grad_gates + at.block_entry * G + unit, grad.pre, H, units);
  if (at.first) store_gates(workspace.grad_gates_first + at.row * G + unit, grad.pre, H, units);
  store(grad_c0, at.enters ? Vec<T>{} : grad.c_prev, units);
  if (args.weight_hr) store(workspace.h + at.block_entry * H + unit, derivative.h, units);
}

template <class T, class W, class Panels>
void backward_step(const BackwardArgs<T, W>& args, const BackwardWorkspace<T, W>& workspace, Range time_block,
                   int64_t t, const Share<T>& share) {
  constexpr int64_t L = kLanes<T>, NR = kNR<T>;
  const int64_t H = args.size.hidden, P = args.size.outputs, G = 4 * H;
  const bool projected = args.weight_hr != nullptr;
  clear_inactive(args, time_block, t, share, workspace.grad_gates, H, 4);
  if (projected) clear_inactive(args, time_block, t, share, workspace.h, H, 1);
  for_each_row_block(args.rows, t, share, [&](int64_t* row, int64_t count) {
    const int64_t continued = projected ? 0 : continued_first(args, t, row, count);
    const W* from[kMC];
    BackwardRow<W> rows[kMC];
    for (int64_t r = 0; r < count; ++r) {
      const int64_t index = block_entry(args.rows, time_block, t, row[r]);
      const bool enters = enters_segment(args, t, row[r]);
      if (projected)
        from[r] = workspace.grad_p + index * P;
      else if (r < continued)
        from[r] = next_grad_gates(args, workspace, time_block, t, row[r]);
      rows[r] = {row[r], index, c_before(args, t, row[r]), enters, is_first(args, t, row[r]) && !enters};
    }
    const int64_t multiplied = projected ? count : continued;
    const T* const panels = projected ? workspace.panels_hr : workspace.panels_hh;
    const typename Panels::Setup setup(panels ? multiplied : 0);
    const ColumnProduct<T, W, Panels> product(from, multiplied, projected ? P : G,
                                              projected ? args.weight_hr : args.weight_hh, H, panels,
                                              share.workspace);
    for (int64_t column = share.unit_blocks.begin * NR; column < std::min(share.unit_blocks.end * NR, H);
         column += NR) {
      alignas(64) T sum[kMC * NR];
      if (projected) {
        std::fill_n(sum, count * NR, T(0));
        product.add(column, sum);
      } else {
        add_to_output_gradients(args, t, row, count, continued, column, product, sum);
      }
      for (int64_t r = 0; r < count; ++r)
        for (int64_t v = 0; v < panel_vectors<T>(H - column); ++v)
          backward_cells(args, workspace, t, rows[r], column + v * L, load(sum + (4 * r + v) * L));
    }
  });
}
