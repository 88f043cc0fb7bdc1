// One thread's share of the forward pass. Included by kernel_impl.h alone.

template <class T, class W>
FUSEDLSTM_HOST_DEVICE T* gates_of(const ForwardArgs<T, W>& args, int64_t t, int64_t row) {
  return args.gates + (t % args.gates_steps * args.size.batch + row) * args.gates_stride;
}
// The state before step t.
template <class T, class W>
FUSEDLSTM_HOST_DEVICE const T* hidden_before(const ForwardArgs<T, W>& args, int64_t t, int64_t row) {
  if (enters_segment(args, t, row)) return args.zeros;
  if (is_first(args, t, row)) return args.h0 + row * args.size.outputs;
  return args.y + ((args.reverse ? t + 1 : t - 1) * args.size.batch + row) * args.y_stride;
}

// Packs W_ih or W_hh so that a panel holds all four gates of a block of units, widened.
template <class T, class W>
void pack_gates(const W* weight, int64_t hidden, int64_t depth, int64_t begin, int64_t end, T* packed) {
  constexpr int64_t L = kLanes<T>;
  for (int64_t block = begin; block < end; ++block)
    for (int64_t gate = 0; gate < 4; ++gate) {
      const int64_t unit = block * L, units = std::min(L, hidden - unit);
      const W* const rows = weight + (gate * hidden + unit) * depth;
      T* const out = packed + block * depth * 4 * L + gate % 2 * L;
      for (int64_t k = 0; k < depth; k += L) {
        const int64_t terms = std::min(L, depth - k);
        Vec<T> square[L];
        for (int64_t j = 0; j < L; ++j)
          square[j] = j < units ? widened<T>(rows + j * depth + k, terms) : Vec<T>{};
        turn_over<T>(square);
        for (int64_t i = 0; i < terms; ++i) store(out + panel_place<T>(depth, gate / 2, k + i), square[i]);
      }
    }
}

// sum [count, 4, lanes] += a [count, depth] times the weights of all four gates of a block of units, as they
// stand.
template <class T, class W>
void add_gates_by_rows(const T* const* a, int64_t count, const W* weight, int64_t hidden, int64_t depth,
                       int64_t unit, T* sum) {
  constexpr int64_t L = kLanes<T>;
  for (int64_t gate = 0; gate < 4; ++gate)
    multiply<T, W>(a, count, weight + (gate * hidden + unit) * depth, depth, std::min(L, hidden - unit),
                   depth, sum + gate * L, 4 * L);
}

// What is set up while `count` rows are multiplied: nothing, where there are no tiles.
template <class T, class W>
class GateTiles {
 public:
  GateTiles(int64_t /*count*/, bool /*packed*/) {}
};

// Rows of x or of states [count, depth], ready to be multiplied with the weights of gates, packed or not.
template <class T, class W>
class GateRows {
 public:
  GateRows(const T* const* rows, int64_t count, int64_t depth, bool /*packed*/, T* /*room*/)
      : rows_(rows), count_(count), depth_(depth) {}

  // sum [count, 4, lanes] += these rows times the weights of a block of units.
  void add_gates(const W* weight, const T* packed, int64_t hidden, int64_t unit, T* sum) const {
    if (packed)
      multiply_panel<T>(rows_, count_, depth_, packed + unit * 4 * depth_, 4, sum);
    else
      add_gates_by_rows(rows_, count_, weight, hidden, depth_, unit, sum);
  }

 private:
  const T* const* rows_;
  int64_t count_, depth_;
};
// Terms of panels that a core's own cache, of 512 KiB or more, holds beside other things.
template <class T, class W>
inline constexpr int64_t kNearTerms = (256 << 10) / (kPanelColumns<T> * sizeof(T));
// Elements that rows need room for.
template <class T, class W>
int64_t gate_rows_room(int64_t /*depth*/) {
  return 0;
}

#ifdef FUSEDLSTM_TILES
#include "tiles_impl.h"
#endif

// sum [count, 4, lanes] = the biases and the input's share of the gates of a block of units.
template <class T, class W>
void start_gates(const ForwardArgs<T, W>& args, const GateRows<T, W>& x, int64_t count, int64_t unit,
                 T* sum) {
  const int64_t H = args.size.hidden, L = kLanes<T>;
  for (int64_t gate = 0; gate < 4; ++gate) {
    const Vec<T> bias = args.bias ? load(args.bias + gate * H + unit, H - unit) : Vec<T>{};
    for (int64_t r = 0; r < count; ++r) store(sum + (4 * r + gate) * L, bias);
  }
  x.add_gates(args.weight_ih, args.packed_ih, H, unit, sum);
}

template <class T, class W>
void input_gates(const ForwardArgs<T, W>& args, const Chunk& chunk, const Share<T>& share) {
  const int64_t N = args.size.batch, H = args.size.hidden, I = args.size.input, L = kLanes<T>;
  const T* x[kGroupRows];
  T* gates[kGroupRows];
  int64_t count = 0;
  const auto flush = [&] {
    const bool packed = args.packed_ih != nullptr;
    const GateTiles<T, W> tiles(count, packed);
    const GateRows<T, W> inputs(x, count, I, packed, share.room);
    for (int64_t unit = share.block_begin * L; unit < std::min(share.block_end * L, H); unit += L) {
      alignas(64) T sum[kGroupRows * 4 * L];
      start_gates(args, inputs, count, unit, sum);
      for (int64_t r = 0; r < count; ++r)
        for (int64_t gate = 0; gate < 4; ++gate)
          store(gates[r] + gate * H + unit, load(sum + (4 * r + gate) * L), H - unit);
    }
    count = 0;
  };
  for (int64_t t = chunk.begin; t < chunk.end; ++t)
    for (int64_t at = share.row_first; at < args.rows.active[t]; at += share.row_stride) {
      const int64_t row = args.rows.order[at];
      x[count] = args.x + (t * N + row) * I;
      gates[count] = gates_of(args, t, row);
      if (++count == kGroupRows) flush();
    }
  if (count > 0) flush();
}

template <class T, class W>
void forward_step(const ForwardArgs<T, W>& args, int64_t t, const Share<T>& share) {
  const int64_t N = args.size.batch, I = args.size.input, H = args.size.hidden, P = args.size.outputs,
                L = kLanes<T>;
  for_each_group(args.rows, t, share, [&](const int64_t* row, int64_t count) {
    const T *x[kGroupRows], *before[kGroupRows], *c_before[kGroupRows];
    T* gates[kGroupRows];
    for (int64_t r = 0; r < count; ++r) {
      x[r] = args.x + (t * N + row[r]) * I;
      before[r] = hidden_before(args, t, row[r]);
      c_before[r] = cell_before(args, t, row[r], args.c_step);
      gates[r] = gates_of(args, t, row[r]);
    }
    const bool packed = args.packed_hh != nullptr;
    const GateTiles<T, W> tiles(count, packed);
    const GateRows<T, W> inputs(x, args.input_in_step ? count : 0, I, packed, share.room);
    const GateRows<T, W> states(before, count, P, packed, share.room + gate_rows_room<T, W>(I));
    for (int64_t unit = share.block_begin * L; unit < std::min(share.block_end * L, H); unit += L) {
      const int64_t units = H - unit;
      alignas(64) T sum[kGroupRows * 4 * L];
      if (args.input_in_step)
        start_gates(args, inputs, count, unit, sum);
      else
        for (int64_t r = 0; r < count; ++r)
          for (int64_t gate = 0; gate < 4; ++gate)
            store(sum + (4 * r + gate) * L, load(gates[r] + gate * H + unit, units));
      states.add_gates(args.weight_hh, args.packed_hh, H, unit, sum);
      for (int64_t r = 0; r < count; ++r) {
        const T* const pre = sum + 4 * r * L;
        const Gates<Vec<T>> activated = activate<VectorMath<T>>(
            Gates<Vec<T>>{load(pre), load(pre + L), load(pre + 2 * L), load(pre + 3 * L)});
        const Vec<T> c = next_cell(activated, load(c_before[r] + unit, units));
        store(args.c + t * args.c_step + row[r] * args.c_stride + unit, c, units);
        if (!args.recompute) {
          T* const h = args.h ? args.h + row[r] * H : args.y + (t * N + row[r]) * args.y_stride;
          store(h + unit, hidden_state<VectorMath<T>>(activated, c), units);
        }
        if (args.keep_gates) {
          T* const kept = gates[r] + unit;
          store(kept, activated.i, units);
          store(kept + H, activated.f, units);
          store(kept + 2 * H, activated.g, units);
          store(kept + 3 * H, activated.o, units);
        }
      }
    }
  });
}

// By rows, since the weights are few beside those of the gates.
template <class T, class W>
void project(const ForwardArgs<T, W>& args, int64_t t, const Share<T>& share) {
  const int64_t N = args.size.batch, H = args.size.hidden, P = args.size.outputs, L = kLanes<T>;
  for (int64_t block = share.block_begin; block < share.block_end; ++block) {
    const int64_t column = block * L, columns = std::min(L, P - column);
    for_each_group(args.rows, t, share, [&](const int64_t* row, int64_t count) {
      const T* h[kGroupRows];
      for (int64_t r = 0; r < count; ++r) h[r] = args.h + row[r] * H;
      T sum[kGroupRows * L];
      std::fill_n(sum, count * L, T(0));
      multiply<T, W>(h, count, args.weight_hr + column * H, H, columns, H, sum, L);
      for (int64_t r = 0; r < count; ++r)
        store(args.y + (t * N + row[r]) * args.y_stride + column, load(sum + r * L), columns);
    });
  }
}
