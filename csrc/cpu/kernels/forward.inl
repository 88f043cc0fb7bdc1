// One thread's share of the forward pass. Included by kernels.inl alone.

// Rows of x or of states [count, depth], to be multiplied with a weight of the gates: with its panels, or,
// where `packed` is null, with the weight as it is stored.
template <class T, class W, class Panels>
class GateProduct {
 public:
  using S = StateType<T, W>;

  GateProduct(const S* const* rows, int64_t count, int64_t depth, const W* weight, const T* packed,
              T* workspace)
      : depth_(depth),
        weight_(weight),
        packed_(packed),
        block_(rows, packed ? count : 0, depth, workspace),
        unpacked_(rows, packed ? 0 : count, depth, workspace) {}

  // Rows for which Panels::Setup prepares the processor before such products.
  static int64_t setup_rows(const T* packed, int64_t count) {
    return packed ? count : Panels::Unpacked::kSetupRows;
  }

  static int64_t workspace(int64_t depth) {
    return std::max(Panels::template workspace<S>(depth), VectorPanels<T, W>::template workspace<S>(depth));
  }

  // sum [count, 4 gates, lanes] += the rows times the weights of the units from `unit` on.
  void add(int64_t hidden, int64_t unit, T* sum) const {
    constexpr int64_t L = kLanes<T>;
    if (packed_) return block_.multiply(packed_ + unit * 4 * Panels::packed_depth(depth_), 4, sum);
    unpacked_.multiply(weight_ + unit * depth_, hidden * depth_, std::min(L, hidden - unit), sum);
  }

 private:
  int64_t depth_;
  const W* weight_;
  const T* packed_;
  typename Panels::RowBlock block_;
  typename Panels::Unpacked unpacked_;
};

template <class T, class W, class Panels>
int64_t forward_workspace_of_thread(const Sizes& size) {
  return GateProduct<T, W, Panels>::workspace(size.input) +
         GateProduct<T, W, Panels>::workspace(size.outputs);
}

template <class T, class W>
FUSEDLSTM_HOST_DEVICE T* sums_of(const ForwardArgs<T, W>& args, int64_t t, int64_t row) {
  return args.sums + (args.sums_offset[t] + row) * 4 * args.size.hidden;
}

// sum [count, 4, lanes] = biases + x times W_ih, for the units from `unit` on.
template <class T, class W, class Panels>
void start_gates(const ForwardArgs<T, W>& args, const GateProduct<T, W, Panels>& x, int64_t count,
                 int64_t unit, T* sum) {
  const int64_t H = args.size.hidden, L = kLanes<T>;
  for (int64_t gate = 0; gate < 4; ++gate) {
    const Vec<T> bias = args.bias ? load(args.bias + gate * H + unit, H - unit) : Vec<T>{};
    for (int64_t r = 0; r < count; ++r) store(sum + (4 * r + gate) * L, bias);
  }
  x.add(H, unit, sum);
}

template <class T, class W, class Panels>
void input_gates(const ForwardArgs<T, W>& args, Range time_block, const Share<T>& share) {
  const int64_t H = args.size.hidden, I = args.size.input, L = kLanes<T>;
  const StateType<T, W>* x[kMC];
  T* sums[kMC];
  int64_t count = 0;
  const auto flush = [&] {
    const typename Panels::Setup setup(GateProduct<T, W, Panels>::setup_rows(args.packed_ih, count));
    const GateProduct<T, W, Panels> of_x(x, count, I, args.weight_ih, args.packed_ih, share.workspace);
    for (int64_t unit = share.unit_blocks.begin * L; unit < std::min(share.unit_blocks.end * L, H);
         unit += L) {
      alignas(64) T sum[kMC * 4 * L];
      start_gates(args, of_x, count, unit, sum);
      for (int64_t r = 0; r < count; ++r)
        for (int64_t gate = 0; gate < 4; ++gate)
          store(sums[r] + gate * H + unit, load(sum + (4 * r + gate) * L), H - unit);
    }
    count = 0;
  };
  for (int64_t t = time_block.begin; t < time_block.end; ++t)
    for (int64_t at = share.row_first; at < args.rows.active[t]; at += share.row_stride) {
      const int64_t row = args.rows.order[at];
      x[count] = args.x + args.rows.entry(t, row) * I;
      sums[count] = sums_of(args, t, row);
      if (++count == kMC) flush();
    }
  if (count > 0) flush();
}

// Writes c_t, h_t and what is kept of one row and one vector of units, from the sums before activation.
template <class T, class W>
FUSEDLSTM_HOST_DEVICE void update_cells(const ForwardArgs<T, W>& args, int64_t t, int64_t row, int64_t unit,
                                        const T* sum, const T* c_prev) {
  const int64_t H = args.size.hidden, L = kLanes<T>, units = H - unit, entry = args.rows.entry(t, row);
  const Gates<Vec<T>> activated =
      activate<VectorMath<T>>(Gates<Vec<T>>{load(sum), load(sum + L), load(sum + 2 * L), load(sum + 3 * L)});
  const Vec<T> c_t = next_cell(activated, load(c_prev + unit, units));
  store(args.c + row * H + unit, c_t, units);
  if (!args.recompute) {
    const Vec<T> h = hidden_state<VectorMath<T>>(activated, c_t);
    if (args.h)
      store(args.h + row * H + unit, h, units);
    else
      store(args.y + entry * args.y_stride + unit, h, units);
  }
  if (args.cells) store(args.cells + entry * args.cells_stride + unit, c_t, units);
  if (args.gates) store_kept(args.gates + entry * args.gates_stride + unit, activated, H, units);
}

template <class T, class W, class Panels>
void forward_step(const ForwardArgs<T, W>& args, int64_t t, const Share<T>& share) {
  const int64_t I = args.size.input, H = args.size.hidden, P = args.size.outputs, L = kLanes<T>;
  for_each_row_block(args.rows, t, share, [&](const int64_t* row, int64_t count) {
    const StateType<T, W>*x[kMC], *h_prev[kMC];
    const T* c_prev[kMC];
    for (int64_t r = 0; r < count; ++r) {
      x[r] = args.x + args.rows.entry(t, row[r]) * I;
      h_prev[r] = h_before(args, t, row[r]);
      c_prev[r] = enters_segment(args, t, row[r]) ? static_cast<const T*>(args.zeros) : args.c + row[r] * H;
    }
    const typename Panels::Setup setup(GateProduct<T, W, Panels>::setup_rows(args.packed_hh, count));
    const GateProduct<T, W, Panels> of_x(x, args.input_in_step ? count : 0, I, args.weight_ih, args.packed_ih,
                                         share.workspace),
        of_h(h_prev, count, P, args.weight_hh, args.packed_hh,
             share.workspace + GateProduct<T, W, Panels>::workspace(I));
    for (int64_t unit = share.unit_blocks.begin * L; unit < std::min(share.unit_blocks.end * L, H);
         unit += L) {
      alignas(64) T sum[kMC * 4 * L];
      if (args.input_in_step)
        start_gates(args, of_x, count, unit, sum);
      else
        for (int64_t r = 0; r < count; ++r)
          for (int64_t gate = 0; gate < 4; ++gate)
            store(sum + (4 * r + gate) * L, load(sums_of(args, t, row[r]) + gate * H + unit, H - unit));
      of_h.add(H, unit, sum);
      for (int64_t r = 0; r < count; ++r) update_cells(args, t, row[r], unit, sum + 4 * r * L, c_prev[r]);
    }
  });
}

// W_hr is read unpacked, since it has few weights beside those of the gates.
template <class T, class W>
void project(const ForwardArgs<T, W>& args, int64_t t, const Share<T>& share) {
  const int64_t H = args.size.hidden, P = args.size.outputs, L = kLanes<T>;
  for (int64_t block = share.unit_blocks.begin; block < share.unit_blocks.end; ++block) {
    const int64_t column = block * L, columns = std::min(L, P - column);
    for_each_row_block(args.rows, t, share, [&](const int64_t* row, int64_t count) {
      const T* h[kMC];
      for (int64_t r = 0; r < count; ++r) h[r] = args.h + row[r] * H;
      T sum[kMC * L];
      std::fill_n(sum, count * L, T(0));
      dot_gemm<T, W>(h, count, args.weight_hr + column * H, H, columns, H, sum, L);
      for (int64_t r = 0; r < count; ++r)
        store(args.y + args.rows.entry(t, row[r]) * args.y_stride + column, load(sum + r * L), columns);
    });
  }
}
