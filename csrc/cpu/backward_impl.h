// One thread's share of the backward pass. Included by kernel_impl.h alone.

// Where the chunk keeps row `row` of step t.
FUSEDLSTM_HOST_DEVICE int64_t place(const Sizes& size, const Chunk& chunk, int64_t t, int64_t row) {
  return (t - chunk.begin) * size.batch + row;
}

// What step t's output (its P columns from `at`) receives from grad_y and grad_h_n.
template <class T>
FUSEDLSTM_HOST_DEVICE Vec<T> output_gradient(const BackwardArgs<T>& args, int64_t t, int64_t row,
                                             int64_t at) {
  const int64_t P = args.size.outputs;
  Vec<T> grad{};
  if (at >= P) return grad;
  if (args.grad_y) grad += load(args.grad_y + (t * args.size.batch + row) * args.y_stride + at, P - at);
  if (args.grad_h_n && is_last(args, t, row)) grad += load(args.grad_h_n + row * P + at, P - at);
  return grad;
}

// The gates' gradient of the step after t in the direction's own order, which is the step before t in
// backward. A row hears nothing after its last step, nor from the segment that follows its own.
template <class T>
FUSEDLSTM_HOST_DEVICE const T* gates_after(const BackwardArgs<T>& args, const BackwardWork<T>& work,
                                           const Chunk& chunk, int64_t t, int64_t row) {
  const int64_t after = args.reverse ? t - 1 : t + 1, G = 4 * args.size.hidden;
  if (is_last(args, t, row) || enters_segment(args, after, row)) return args.zeros;
  if (after < chunk.begin || after >= chunk.end) return work.after + row * G;
  return work.grad_gates + place(args.size, chunk, after, row) * G;
}
// Nothing follows the last of all steps.
template <class T>
FUSEDLSTM_HOST_DEVICE int64_t depth_after(const BackwardArgs<T>& args, int64_t t) {
  return t == (args.reverse ? 0 : args.size.steps - 1) ? 0 : 4 * args.size.hidden;
}

// Zeros for the rows of a share that take no part in step t.
template <class T>
void clear_inactive(const BackwardArgs<T>& args, const Chunk& chunk, int64_t t, const Share<T>& share,
                    T* tensor, int64_t columns, int64_t parts) {
  const int64_t C = kPanelColumns<T>, begin = share.block_begin * C,
                end = std::min(share.block_end * C, columns);
  for (int64_t at = share.row_first; at < args.size.batch && begin < end; at += share.row_stride)
    for (int64_t part = 0; at >= args.rows.active[t] && part < parts; ++part)
      std::fill_n(tensor + (place(args.size, chunk, t, args.rows.order[at]) * parts + part) * columns + begin,
                  end - begin, T(0));
}

template <class T>
void backward_project(const BackwardArgs<T>& args, const BackwardWork<T>& work, const Chunk& chunk, int64_t t,
                      const Share<T>& share) {
  constexpr int64_t L = kLanes<T>, C = kPanelColumns<T>;
  const int64_t P = args.size.outputs, G = 4 * args.size.hidden;
  clear_inactive(args, chunk, t, share, work.grad_p, P, 1);
  for_each_group(args.rows, t, share, [&](const int64_t* row, int64_t count) {
    const T* after[kGroupRows];
    for (int64_t r = 0; r < count; ++r) after[r] = gates_after(args, work, chunk, t, row[r]);
    for (int64_t column = share.block_begin * C; column < std::min(share.block_end * C, P); column += C) {
      const int64_t vectors = panel_vectors<T>(P - column);
      alignas(64) T sum[kGroupRows * C];
      for (int64_t r = 0; r < count; ++r)
        for (int64_t v = 0; v < 4; ++v)
          store(sum + (4 * r + v) * L, output_gradient(args, t, row[r], column + v * L));
      multiply_panel<T>(after, count, depth_after(args, t), work.panels_hh + column * G, vectors, sum);
      for (int64_t r = 0; r < count; ++r)
        for (int64_t v = 0, at = column; v < vectors; ++v, at += L)
          store(work.grad_p + place(args.size, chunk, t, row[r]) * P + at, load(sum + (4 * r + v) * L),
                P - at);
    }
  });
}

template <class T>
void backward_step(const BackwardArgs<T>& args, const BackwardWork<T>& work, const Chunk& chunk, int64_t t,
                   const Share<T>& share) {
  constexpr int64_t L = kLanes<T>, C = kPanelColumns<T>;
  const int64_t N = args.size.batch, H = args.size.hidden, P = args.size.outputs, G = 4 * H;
  const bool projected = args.weight_hr != nullptr;
  clear_inactive(args, chunk, t, share, work.grad_gates, H, 4);
  if (projected) clear_inactive(args, chunk, t, share, work.h, H, 1);
  for_each_group(args.rows, t, share, [&](const int64_t* row, int64_t count) {
    const T *from[kGroupRows], *c_before[kGroupRows];
    int64_t places[kGroupRows];
    for (int64_t r = 0; r < count; ++r) {
      places[r] = place(args.size, chunk, t, row[r]);
      from[r] = projected ? work.grad_p + places[r] * P : gates_after(args, work, chunk, t, row[r]);
      c_before[r] = cell_before(args, t, row[r], N * args.c_stride);
    }
    for (int64_t column = share.block_begin * C; column < std::min(share.block_end * C, H); column += C) {
      const int64_t vectors = panel_vectors<T>(H - column);
      alignas(64) T sum[kGroupRows * C];
      for (int64_t r = 0; r < count; ++r)
        for (int64_t v = 0; v < 4; ++v)
          store(sum + (4 * r + v) * L,
                projected ? Vec<T>{} : output_gradient(args, t, row[r], column + v * L));
      if (projected)
        multiply_panel<T>(from, count, P, work.panels_hr + column * P, vectors, sum);
      else
        multiply_panel<T>(from, count, depth_after(args, t), work.panels_hh + column * G, vectors, sum);
      for (int64_t r = 0; r < count; ++r) {
        const bool cut = enters_segment(args, t, row[r]);
        const bool first = is_first(args, t, row[r]) && !cut;
        for (int64_t v = 0, unit = column; v < vectors; ++v, unit += L) {
          const int64_t units = H - unit, at = (t * N + row[r]) * args.c_stride + unit;
          const T* const saved = args.gates + (t * N + row[r]) * args.gates_stride + unit;
          T* const grad_c0 = args.grad_c0 + row[r] * H + unit;
          const Gates<Vec<T>> gates{load(saved, units), load(saved + H, units), load(saved + 2 * H, units),
                                    load(saved + 3 * H, units)};
          Vec<T> grad_c = load(grad_c0, units);
          if (args.grad_c) grad_c += load(args.grad_c + at, units);
          const CellGradient<Vec<T>> grad =
              cell_gradient<VectorMath<T>>(gates, load(c_before[r] + unit, units), load(args.c + at, units),
                                           load(sum + (4 * r + v) * L), grad_c);
          const auto write = [&](T* out) {
            store(out, grad.pre.i, units);
            store(out + H, grad.pre.f, units);
            store(out + 2 * H, grad.pre.g, units);
            store(out + 3 * H, grad.pre.o, units);
          };
          write(work.grad_gates + places[r] * G + unit);
          if (first) write(work.first + row[r] * G + unit);
          store(grad_c0, cut ? Vec<T>{} : grad.c_prev, units);
          if (projected) store(work.h + places[r] * H + unit, grad.h, units);
        }
      }
    }
  });
}
