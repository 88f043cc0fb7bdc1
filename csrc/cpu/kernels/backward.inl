// One thread's share of the backward pass. Included by kernels.inl alone.

// Index of (t, row) among the entries of a time block.
FUSEDLSTM_HOST_DEVICE int64_t block_entry(const Rows& rows, Range time_block, int64_t t, int64_t row) {
  return rows.entry(t, row) - rows.offset[time_block.begin];
}

// Gradient of y at step t from grad_y and grad_h_n, for the vector of columns from `column` on.
template <class T>
FUSEDLSTM_HOST_DEVICE Vec<T> output_gradient(const BackwardArgs<T>& args, int64_t t, int64_t row,
                                             int64_t column) {
  const int64_t P = args.size.outputs;
  Vec<T> grad{};
  if (column >= P) return grad;
  if (args.grad_y) grad += load(args.grad_y + args.rows.entry(t, row) * args.y_stride + column, P - column);
  if (args.grad_h_n && is_last(args, t, row)) grad += load(args.grad_h_n + row * P + column, P - column);
  return grad;
}

// The step that follows t in the direction's order, which the backward pass did before t.
template <class T>
FUSEDLSTM_HOST_DEVICE int64_t step_after(const BackwardArgs<T>& args, int64_t t) {
  return args.reverse ? t - 1 : t + 1;
}
// Puts those rows of a row block first whose state after step t the next step takes, and counts them. No
// gradient comes back to the others: their product would be one with zeros, and NaN where a weight is not
// finite.
template <class T>
FUSEDLSTM_HOST_DEVICE int64_t continued_first(const BackwardArgs<T>& args, int64_t t, int64_t* row,
                                              int64_t count) {
  int64_t continued = 0;
  for (int64_t r = 0; r < count; ++r)
    if (!is_last(args, t, row[r]) && !enters_segment(args, step_after(args, t), row[r]))
      std::swap(row[r], row[continued++]);
  return continued;
}
// Gradient of the gates of the step after t, for a row that is continued.
template <class T>
FUSEDLSTM_HOST_DEVICE const T* next_grad_gates(const BackwardArgs<T>& args,
                                               const BackwardWorkspace<T>& workspace, Range time_block,
                                               int64_t t, int64_t row) {
  const int64_t next = step_after(args, t), G = 4 * args.size.hidden;
  if (next < time_block.begin || next >= time_block.end) return workspace.grad_gates_next + row * G;
  return workspace.grad_gates + block_entry(args.rows, time_block, next, row) * G;
}

// Clears tensor [B, parts, columns] for the rows of a share that have an entry in step t and take no part in
// it.
template <class T>
void clear_inactive(const BackwardArgs<T>& args, Range time_block, int64_t t, const Share<T>& share,
                    T* tensor, int64_t columns, int64_t parts) {
  const int64_t begin = share.unit_blocks.begin * kNR<T>,
                end = std::min(share.unit_blocks.end * kNR<T>, columns);
  const int64_t entries = args.rows.offset[t + 1] - args.rows.offset[t];
  for (int64_t at = share.row_first; at < entries && begin < end; at += share.row_stride)
    for (int64_t part = 0; at >= args.rows.active[t] && part < parts; ++part)
      std::fill_n(tensor +
                      (block_entry(args.rows, time_block, t, args.rows.order[at]) * parts + part) * columns +
                      begin,
                  end - begin, T(0));
}

// The panel of the columns from `column` on in a matrix of this depth; null if the matrix is not packed.
template <class T>
FUSEDLSTM_HOST_DEVICE const T* panel(const T* panels, int64_t column, int64_t depth) {
  return panels ? panels + column * depth : nullptr;
}

// sum [count, 4 vectors] += rows [count, depth] times the columns of a weight from `column` on: times their
// panel, or, without panels, times the weight as it is stored.
template <class T>
void add_product(const T* const* rows, int64_t count, int64_t depth, const T* panel, const T* weight,
                 int64_t column, int64_t columns, T* sum) {
  if (panel) return panel_gemm<T>(rows, count, depth, panel, panel_vectors<T>(columns - column), sum);
  unpacked_gemm([&](int64_t r, int64_t k) { return rows[r][k]; }, count, depth,
                [&](int64_t k) { return weight + k * columns + column; }, std::min(kNR<T>, columns - column),
                true, sum, kNR<T>);
}

template <class T>
void backward_project(const BackwardArgs<T>& args, const BackwardWorkspace<T>& workspace, Range time_block,
                      int64_t t, const Share<T>& share) {
  constexpr int64_t L = kLanes<T>, NR = kNR<T>;
  const int64_t P = args.size.outputs, G = 4 * args.size.hidden;
  clear_inactive(args, time_block, t, share, workspace.grad_p, P, 1);
  for_each_row_block(args.rows, t, share, [&](int64_t* row, int64_t count) {
    const int64_t continued = continued_first(args, t, row, count);
    const T* next[kMC];
    for (int64_t r = 0; r < continued; ++r) next[r] = next_grad_gates(args, workspace, time_block, t, row[r]);
    for (int64_t column = share.unit_blocks.begin * NR; column < std::min(share.unit_blocks.end * NR, P);
         column += NR) {
      const int64_t vectors = panel_vectors<T>(P - column);
      alignas(64) T sum[kMC * NR];
      for (int64_t r = 0; r < count; ++r)
        for (int64_t v = 0; v < 4; ++v)
          store(sum + (4 * r + v) * L, output_gradient(args, t, row[r], column + v * L));
      add_product(next, continued, G, panel(workspace.panels_hh, column, G), args.weight_hh, column, P, sum);
      for (int64_t r = 0; r < count; ++r)
        for (int64_t v = 0, at = column; v < vectors; ++v, at += L)
          store(workspace.grad_p + block_entry(args.rows, time_block, t, row[r]) * P + at,
                load(sum + (4 * r + v) * L), P - at);
    }
  });
}

// A row in step t.
template <class T>
struct BackwardRow {
  int64_t row, block_entry;
  const T* c_prev;
  bool enters, first;  // it starts from states of zero, or from h0 and c0
};

// Derivative of one row and one vector of units; grad_h is the gradient of h before a projection.
template <class T>
FUSEDLSTM_HOST_DEVICE void backward_cells(const BackwardArgs<T>& args, const BackwardWorkspace<T>& workspace,
                                          int64_t t, const BackwardRow<T>& at, int64_t unit, Vec<T> grad_h) {
  const int64_t H = args.size.hidden, G = 4 * H, units = H - unit, entry = args.rows.entry(t, at.row);
  const int64_t cell = entry * args.cells_stride + unit;
  const T* const saved = args.gates + entry * args.gates_stride + unit;
  const Gates<Vec<T>> gates{load(saved, units), load(saved + H, units), load(saved + 2 * H, units),
                            load(saved + 3 * H, units)};
  T* const grad_c0 = args.grad_c0 + at.row * H + unit;  // gradient of the cell state, from step to step
  Vec<T> grad_c = load(grad_c0, units);
  if (args.grad_cells) grad_c += load(args.grad_cells + cell, units);
  const CellDerivative<Vec<T>> derivative =
      cell_derivative<VectorMath<T>>(gates, load(at.c_prev + unit, units), load(args.cells + cell, units));
  const CellGradient<Vec<T>> grad = cell_gradient(derivative, grad_h, grad_c);
  store_gates(workspace.grad_gates + at.block_entry * G + unit, grad.pre, H, units);
  if (at.first) store_gates(workspace.grad_gates_first + at.row * G + unit, grad.pre, H, units);
  store(grad_c0, at.enters ? Vec<T>{} : grad.c_prev, units);
  if (args.weight_hr) store(workspace.h + at.block_entry * H + unit, derivative.h, units);
}

template <class T>
void backward_step(const BackwardArgs<T>& args, const BackwardWorkspace<T>& workspace, Range time_block,
                   int64_t t, const Share<T>& share) {
  constexpr int64_t L = kLanes<T>, NR = kNR<T>;
  const int64_t H = args.size.hidden, P = args.size.outputs, G = 4 * H;
  const bool projected = args.weight_hr != nullptr;
  clear_inactive(args, time_block, t, share, workspace.grad_gates, H, 4);
  if (projected) clear_inactive(args, time_block, t, share, workspace.h, H, 1);
  for_each_row_block(args.rows, t, share, [&](int64_t* row, int64_t count) {
    const int64_t continued = projected ? 0 : continued_first(args, t, row, count);
    const T* from[kMC];
    BackwardRow<T> rows[kMC];
    for (int64_t r = 0; r < count; ++r) {
      const int64_t index = block_entry(args.rows, time_block, t, row[r]);
      const bool enters = enters_segment(args, t, row[r]);
      if (projected)
        from[r] = workspace.grad_p + index * P;
      else if (r < continued)
        from[r] = next_grad_gates(args, workspace, time_block, t, row[r]);
      rows[r] = {row[r], index, c_before(args, t, row[r], true), enters,
                 is_first(args, t, row[r]) && !enters};
    }
    for (int64_t column = share.unit_blocks.begin * NR; column < std::min(share.unit_blocks.end * NR, H);
         column += NR) {
      const int64_t vectors = panel_vectors<T>(H - column);
      alignas(64) T sum[kMC * NR];
      for (int64_t r = 0; r < count; ++r)
        for (int64_t v = 0; v < 4; ++v)
          store(sum + (4 * r + v) * L,
                projected ? Vec<T>{} : output_gradient(args, t, row[r], column + v * L));
      if (projected)
        add_product(from, count, P, panel(workspace.panels_hr, column, P), args.weight_hr, column, H, sum);
      else
        add_product(from, continued, G, panel(workspace.panels_hh, column, G), args.weight_hh, column, H,
                    sum);
      for (int64_t r = 0; r < count; ++r)
        for (int64_t v = 0; v < vectors; ++v)
          backward_cells(args, workspace, t, rows[r], column + v * L, load(sum + (4 * r + v) * L));
    }
  });
}
