// The body of kernel_*.cpp. The including file has set the instruction set and, in an anonymous namespace of
// fusedlstm::cpu, kVectorBytes and kAccumulators (how many vectors of sums fit the registers beside
// operands).

#include "simd.h"

constexpr int kTileRows = kAccumulators / 2;  // a tile of sums is kTileRows rows by two vectors of columns
constexpr int kGroupRows = 4 * kTileRows;  // rows that use a piece of the weights while it is in the L1 cache
// Terms of a sum between two additions to memory: such a piece of weights fits the L1 cache (128 x 4
// vectors), and the rounding error grows with this length rather than with the whole one.
constexpr int64_t kPieceTerms = 128;

// sum[r * C + c] += dot(a[r], column vector c of b), where row k of b starts at b + k * b_stride.
template <class T, int R, int C>
FUSEDLSTM_HOST_DEVICE void multiply_tile(const T* const* a, int64_t begin, int64_t end, const T* b,
                                         int64_t b_stride, Vec<T>* sum, int64_t sum_stride) {
  Vec<T> part[R][C] = {};
  for (int64_t k = begin; k < end; ++k) {
    Vec<T> column[C];
    for (int c = 0; c < C; ++c) column[c] = load(b + k * b_stride + c * kLanes<T>);
    // The next piece comes from the L3 cache or from memory, and the other tiles' work hides that: 1.2 to 1.5
    // times the speed for 21 MB of weights. A tile of a row or two reads faster than it computes, and the
    // processor's own prefetching serves it better.
    if constexpr (R > 2)
      for (int byte = 0; byte < C * kVectorBytes; byte += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(b + (k + kPieceTerms) * b_stride) + byte);
    for (int r = 0; r < R; ++r) {
      const Vec<T> value = splat(a[r][k]);
      for (int c = 0; c < C; ++c) part[r][c] += value * column[c];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) sum[r * sum_stride + c] += part[r][c];
}

// The same for `count` rows, known to be at most R, and all C vectors of columns; two at a time where the
// sums of all would not fit the registers.
template <class T, int C, int R = kTileRows>
void multiply_rows(const T* const* a, int64_t count, int64_t begin, int64_t end, const T* b, int64_t b_stride,
                   Vec<T>* sum) {
  if constexpr (R > 1) {
    if (count < R) return multiply_rows<T, C, R - 1>(a, count, begin, end, b, b_stride, sum);
  }
  if constexpr (R * C <= kAccumulators) {
    multiply_tile<T, R, C>(a, begin, end, b, b_stride, sum, C);
  } else {
    for (int c = 0; c < C; c += 2)
      multiply_tile<T, R, 2>(a, begin, end, b + c * kLanes<T>, b_stride, sum + c, C);
  }
}

// sum [count, C] = a [count, depth] times the packed columns b [depth, C vectors]; count is at most
// kGroupRows.
template <class T, int C>
void multiply(const T* const* a, int64_t count, int64_t depth, const T* b, Vec<T>* sum) {
  std::fill_n(sum, count * C, Vec<T>{});
  const int64_t tiles = (count + kTileRows - 1) / kTileRows;
  for (int64_t begin = 0; begin < depth; begin += kPieceTerms) {
    const int64_t end = std::min(begin + kPieceTerms, depth);
    for (int64_t tile = 0; tile < tiles; ++tile) {  // of equal size, so that none is left with a single row
      const int64_t first = count * tile / tiles, next = count * (tile + 1) / tiles;
      multiply_rows<T, C>(a + first, next - first, begin, end, b, C * kLanes<T>, sum + first * C);
    }
  }
}

// Calls function(row, count) for the rows of a share that are active in step t, in groups.
template <class Function>
void for_each_group(const Rows& rows, int64_t t, const Share& share, const Function& function) {
  int64_t row[kGroupRows], count = 0;
  for (int64_t at = share.row_first; at < rows.active[t]; at += share.row_stride) {
    row[count++] = rows.order[at];
    if (count == kGroupRows) {
      function(row, count);
      count = 0;
    }
  }
  if (count > 0) function(row, count);
}

template <class T>
constexpr int64_t kColumns = 2 * kLanes<T>;

template <class T>
void pack_gates(const ForwardArgs<T>& args, const Share& share, T* packed) {
  const int64_t H = args.size.hidden, P = args.size.outputs, W = kLanes<T>;
  for (int64_t block = share.block_begin; block < share.block_end; ++block) {
    T* const out = packed + block * P * 4 * W;
    const int64_t unit = block * W, units = std::min(W, H - unit);
    for (int gate = 0; gate < 4; ++gate) {
      const T* const rows = args.weight_hh + (gate * H + unit) * P;
      for (int64_t k = 0; k < P; ++k)
        for (int64_t j = 0; j < W; ++j) out[(k * 4 + gate) * W + j] = j < units ? rows[j * P + k] : T(0);
    }
  }
}

template <class T>
void pack_rows(const T* weight, int64_t rows, int64_t depth, const Share& share, T* packed) {
  for (int64_t block = share.block_begin; block < share.block_end; ++block) {
    T* const out = packed + block * depth * kColumns<T>;
    const int64_t begin = block * kColumns<T>, count = std::min(kColumns<T>, rows - begin);
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t j = 0; j < kColumns<T>; ++j)
        out[k * kColumns<T> + j] = j < count ? weight[(begin + j) * depth + k] : T(0);
  }
}

template <class T>
void pack_columns(const T* weight, int64_t depth, int64_t columns, const Share& share, T* packed) {
  for (int64_t block = share.block_begin; block < share.block_end; ++block) {
    T* const out = packed + block * depth * kColumns<T>;
    const int64_t begin = block * kColumns<T>, count = std::min(kColumns<T>, columns - begin);
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t j = 0; j < kColumns<T>; ++j)
        out[k * kColumns<T> + j] = j < count ? weight[k * columns + begin + j] : T(0);
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
template <template <class> class Args, class T>
FUSEDLSTM_HOST_DEVICE const T* cell_before(const Args<T>& args, int64_t t, int64_t row, int64_t c_step) {
  if (enters_segment(args, t, row)) return args.zeros;
  if (is_first(args, t, row)) return args.c0 + row * args.size.hidden;
  return args.c + (args.reverse ? t + 1 : t - 1) * c_step + row * args.c_stride;
}
// The state before step t, and so the columns of W_hh that its product takes.
template <class T>
FUSEDLSTM_HOST_DEVICE const T* hidden_before(const ForwardArgs<T>& args, int64_t t, int64_t row) {
  if (enters_segment(args, t, row)) return args.zeros;
  if (is_first(args, t, row)) return args.h0 + row * args.size.outputs;
  return args.y + ((args.reverse ? t + 1 : t - 1) * args.size.batch + row) * args.y_stride;
}

template <class T>
void forward_step(const ForwardArgs<T>& args, int64_t t, const Share& share, const T* packed, T* h,
                  int64_t h_stride) {
  const int64_t N = args.size.batch, H = args.size.hidden, P = args.size.outputs, W = kLanes<T>;
  const int64_t depth = args.weight_hh ? P : 0;
  for (int64_t block = share.block_begin; block < share.block_end; ++block) {
    const T* const weight = packed + block * P * 4 * W;
    const int64_t unit = block * W, units = std::min(W, H - unit);
    for_each_group(args.rows, t, share, [&](const int64_t* row, int64_t count) {
      const T* h_before[kGroupRows] = {};
      for (int64_t r = 0; r < count && depth > 0; ++r) h_before[r] = hidden_before(args, t, row[r]);
      Vec<T> sum[kGroupRows * 4];
      multiply<T, 4>(h_before, count, depth, weight, sum);
      for (int64_t r = 0; r < count; ++r) {
        T* const gates = args.gates + (t * N + row[r]) * args.gates_stride + unit;
        Vec<T>* const pre = sum + 4 * r;
        for (int gate = 0; gate < 4; ++gate) {
          pre[gate] += load(gates + gate * H, units);
          if (args.bias) pre[gate] += load(args.bias + gate * H + unit, units);
        }
        const Gates<Vec<T>> activated =
            activate<VectorMath<T>>(Gates<Vec<T>>{pre[0], pre[1], pre[2], pre[3]});
        const T* const c_before = cell_before(args, t, row[r], args.c_step);
        const Vec<T> c = next_cell(activated, load(c_before + unit, units));
        store(args.c + t * args.c_step + row[r] * args.c_stride + unit, c, units);
        if (h) store(h + row[r] * h_stride + unit, hidden_state<VectorMath<T>>(activated, c), units);
        if (args.keep_gates) {
          store(gates, activated.i, units);
          store(gates + H, activated.f, units);
          store(gates + 2 * H, activated.g, units);
          store(gates + 3 * H, activated.o, units);
        }
      }
    });
  }
}

template <class T>
void project(const ForwardArgs<T>& args, int64_t t, const Share& share, const T* packed, const T* h) {
  const int64_t N = args.size.batch, H = args.size.hidden, P = args.size.outputs, W = kLanes<T>;
  for (int64_t block = share.block_begin; block < share.block_end; ++block) {
    const int64_t column = block * kColumns<T>;
    for_each_group(args.rows, t, share, [&](const int64_t* row, int64_t count) {
      const T* a[kGroupRows] = {};
      for (int64_t r = 0; r < count; ++r) a[r] = h + row[r] * H;
      Vec<T> sum[kGroupRows * 2];
      multiply<T, 2>(a, count, H, packed + block * H * kColumns<T>, sum);
      for (int64_t r = 0; r < count; ++r)
        for (int64_t at = column, v = 0; v < 2 && at < P; ++v, at += W)
          store(args.y + (t * N + row[r]) * args.y_stride + at, sum[2 * r + v], P - at);
    });
  }
}

// What step t's output (its P columns from `at`) receives from grad_y and grad_h_n.
template <class T>
FUSEDLSTM_HOST_DEVICE Vec<T> output_gradient(const BackwardArgs<T>& args, int64_t t, int64_t row,
                                             int64_t at) {
  const int64_t P = args.size.outputs;
  Vec<T> grad{};
  if (args.grad_y) grad += load(args.grad_y + (t * args.size.batch + row) * args.y_stride + at, P - at);
  if (args.grad_h_n && is_last(args, t, row)) grad += load(args.grad_h_n + row * P + at, P - at);
  return grad;
}

// The gates' gradient of the step after t in the direction's own order, which is the step before t in
// backward. A row whose last step is t reads the zeros that stand beyond its length, or nothing when no step
// comes after; one whose segment ends with t hears nothing of the next.
template <class T>
FUSEDLSTM_HOST_DEVICE int64_t depth_after(const BackwardArgs<T>& args, int64_t t) {
  return t == (args.reverse ? 0 : args.size.steps - 1) ? 0 : 4 * args.size.hidden;
}
template <class T>
FUSEDLSTM_HOST_DEVICE const T* gates_after(const BackwardArgs<T>& args, int64_t t, int64_t row) {
  if (enters_segment(args, args.reverse ? t - 1 : t + 1, row)) return args.zeros;
  return args.grad_gates + ((args.reverse ? t - 1 : t + 1) * args.size.batch + row) * args.gates_stride;
}

template <class T>
void backward_project(const BackwardArgs<T>& args, int64_t t, const Share& share, const T* packed) {
  const int64_t N = args.size.batch, H = args.size.hidden, P = args.size.outputs, W = kLanes<T>;
  for (int64_t block = share.block_begin; block < share.block_end; ++block) {
    const int64_t column = block * kColumns<T>;
    for_each_group(args.rows, t, share, [&](const int64_t* row, int64_t count) {
      const T* a[kGroupRows] = {};
      for (int64_t r = 0; r < count; ++r) a[r] = gates_after(args, t, row[r]);
      Vec<T> sum[kGroupRows * 2];
      multiply<T, 2>(a, count, depth_after(args, t), packed + block * 4 * H * kColumns<T>, sum);
      for (int64_t r = 0; r < count; ++r)
        for (int64_t at = column, v = 0; v < 2 && at < P; ++v, at += W)
          store(args.grad_p + (t * N + row[r]) * P + at,
                sum[2 * r + v] + output_gradient(args, t, row[r], at), P - at);
    });
  }
}

template <class T>
void backward_step(const BackwardArgs<T>& args, int64_t t, const Share& share, const T* packed) {
  const int64_t N = args.size.batch, H = args.size.hidden, P = args.size.outputs, W = kLanes<T>;
  const bool projected = args.grad_p != nullptr;
  const int64_t full_depth = projected ? P : 4 * H, depth = projected ? P : depth_after(args, t);
  for (int64_t block = share.block_begin; block < share.block_end; ++block) {
    for_each_group(args.rows, t, share, [&](const int64_t* row, int64_t count) {
      const T* a[kGroupRows] = {};
      for (int64_t r = 0; r < count; ++r)
        a[r] = projected ? args.grad_p + (t * N + row[r]) * P : gates_after(args, t, row[r]);
      Vec<T> sum[kGroupRows * 2];
      multiply<T, 2>(a, count, depth, packed + block * full_depth * kColumns<T>, sum);
      for (int64_t r = 0; r < count; ++r) {
        const bool cut = enters_segment(args, t, row[r]);
        const T* const c_before = cell_before(args, t, row[r], N * args.c_stride);
        for (int64_t unit = block * kColumns<T>, v = 0; v < 2 && unit < H; ++v, unit += W) {
          const int64_t units = H - unit;
          const T* const saved = args.gates + (t * N + row[r]) * args.gates_stride + unit;
          T* const grad_c0 = args.grad_c0 + row[r] * H + unit;

          const Gates<Vec<T>> gates{load(saved, units), load(saved + H, units), load(saved + 2 * H, units),
                                    load(saved + 3 * H, units)};
          Vec<T> grad_h = sum[2 * r + v];
          if (!projected) grad_h += output_gradient(args, t, row[r], unit);
          Vec<T> grad_c = load(grad_c0, units);
          if (args.grad_c) grad_c += load(args.grad_c + (t * N + row[r]) * args.c_stride + unit, units);
          const Vec<T> c = load(args.c + (t * N + row[r]) * args.c_stride + unit, units);
          const CellGradient<Vec<T>> grad =
              cell_gradient<VectorMath<T>>(gates, load(c_before + unit, units), c, grad_h, grad_c);

          T* const out = args.grad_gates + (t * N + row[r]) * args.gates_stride + unit;
          store(out, grad.pre.i, units);
          store(out + H, grad.pre.f, units);
          store(out + 2 * H, grad.pre.g, units);
          store(out + 3 * H, grad.pre.o, units);
          store(grad_c0, cut ? Vec<T>{} : grad.c_prev, units);
          if (projected) store(args.h + (t * N + row[r]) * H + unit, grad.h, units);
        }
      }
    });
  }
}

template <class T>
constexpr Kernel<T> make_kernel(const char* instruction_set) {
  return {instruction_set, kLanes<T>,       kColumns<T>, pack_gates<T>,       pack_rows<T>,
          pack_columns<T>, forward_step<T>, project<T>,  backward_project<T>, backward_step<T>};
}
