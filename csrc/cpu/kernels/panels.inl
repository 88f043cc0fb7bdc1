// Products of rows with panels: packed columns of a matrix. Included by kernels.inl alone, inside the
// namespace of one instruction set. A policy, Panels, says how a matrix is packed and how a row block is
// multiplied with one panel of it. VectorPanels is that of vector instructions and panels of T; pairs.inl has
// those of bfloat16.
//
// An element of a panel is T, or a pair of bfloat16 in its place. The packed depth of a matrix counts
// elements.

#include "gemm.inl"

// A panel [2 halves, depth, 2 vectors]: columns of a packed matrix (BLIS: NR).
template <class T>
inline constexpr int64_t kNR = 4 * kLanes<T>;
// How many k ahead of its use a panel is prefetched, from the L2 cache or beyond.
constexpr int64_t kPrefetchAhead = 48;
// k that a tall tile handles at once, with a register for each of its columns. The row pointers of a tile of
// over 10 rows do not fit x86-64's 16 general registers; each is then loaded once for three k.
constexpr int kTallUnroll = kTallMR > 10 ? 3 : 1;

// Vectors of a panel that have columns, if so many columns are left.
template <class T>
FUSEDLSTM_HOST_DEVICE int64_t panel_vectors(int64_t columns) {
  return std::min<int64_t>(4, (columns + kLanes<T> - 1) / kLanes<T>);
}
// Offset in a panel of the two vectors of a half at k.
template <class T>
FUSEDLSTM_HOST_DEVICE int64_t panel_offset(int64_t depth, int64_t half, int64_t k) {
  return (half * depth + k) * 2 * kLanes<T>;
}

// sum [R, 4 vectors] += a times a panel over k in [begin, end), for all C = 4 vectors, or for C = 2 of the
// half that `panel` points to. `half_stride` is from one half to the other.
template <class T, class Arithmetic, int R, int C>
FUSEDLSTM_HOST_DEVICE void panel_microkernel(const T* const* a, int64_t begin, int64_t end, const T* panel,
                                             int64_t half_stride, T* sum) {
  constexpr int64_t L = kLanes<T>;
  Vec<T> part[R][C];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) part[r][c] = Vec<T>{};
  const auto add = [&](int64_t k, auto count) __attribute__((always_inline)) {
    Vec<T> columns[count.value][C];
#pragma GCC unroll 4
    for (int i = 0; i < count.value; ++i)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) {
        const T* const column = panel + (k + i) * 2 * L + c % 2 * L + c / 2 * half_stride;
        columns[i][c] = load(column);
        if (c % 2 * kVectorBytes % 64 == 0) __builtin_prefetch(column + kPrefetchAhead * 2 * L);
      }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const T* const row = a[r] + k;
#pragma GCC unroll 4
      for (int i = 0; i < count.value; ++i) {
        const Vec<T> value = Arithmetic::splat_element(row + i);
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) Arithmetic::add(part[r][c], value, columns[i][c]);
      }
    }
  };
  constexpr int kUnroll = C == 2 ? kTallUnroll : 1;
  int64_t k = begin;
  for (; k + kUnroll <= end; k += kUnroll) add(k, std::integral_constant<int, kUnroll>());
  for (; k < end; ++k) add(k, std::integral_constant<int, 1>());
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) store(sum + (4 * r + c) * L, load(sum + (4 * r + c) * L) + part[r][c]);
}

// The same for `count` rows, at most R.
template <class T, class Arithmetic, int C, int R>
FUSEDLSTM_HOST_DEVICE void panel_tile(const T* const* a, int64_t count, int64_t begin, int64_t end,
                                      const T* panel, int64_t half_stride, T* sum) {
  if constexpr (R > 1) {
    if (count < R) return panel_tile<T, Arithmetic, C, R - 1>(a, count, begin, end, panel, half_stride, sum);
  }
  panel_microkernel<T, Arithmetic, R, C>(a, begin, end, panel, half_stride, sum);
}

// sum [count, 4 vectors] += a [count, depth] times a panel, for at most kMC rows, or none. With two `vectors`
// or fewer the second half of the panel is left out.
template <class T, class Arithmetic>
void panel_gemm(const T* const* a, int64_t count, int64_t depth, const T* panel, int64_t vectors, T* sum,
                int64_t kc) {
  constexpr int64_t L = kLanes<T>;
  const int64_t half_stride = panel_offset<T>(depth, 1, 0);
  if (count > 0 && count <= kMR && vectors > 2) {
    for (int64_t begin = 0; begin < depth; begin += kc)
      panel_tile<T, Arithmetic, 4, kMR>(a, count, begin, std::min(begin + kc, depth), panel, half_stride,
                                        sum);
    return;
  }
  const int64_t tiles = (count + kTallMR - 1) / kTallMR;
  for (int64_t half = 0; 2 * half < vectors; ++half)
    for (int64_t begin = 0; begin < depth; begin += kc) {
      const int64_t end = std::min(begin + kc, depth);
      for (int64_t tile = 0, first = 0; tile < tiles; ++tile) {
        const int64_t height = (count - first + tiles - tile - 1) / (tiles - tile);
        panel_tile<T, Arithmetic, 2, kTallMR>(a + first, height, begin, end, panel + half * half_stride, 0,
                                              sum + (4 * first + 2 * half) * L);
        first += height;
      }
    }
}

template <class T, class W>
class DotRows;

// T is the type of the sums and of the elements, W that of what is stored: weights, x, states and gradients
// of the gates. A row block may come from either.
template <class T, class W>
struct VectorPanels {
  static constexpr int64_t kRowBytes = kNR<T> * sizeof(T);  // of a panel, for each k of the matrix
  static constexpr PackedFrom kPackedFrom = {.rows = 4, .entries = 24};

  static int64_t packed_depth(int64_t depth) { return depth; }

  // One vector of elements from k on, along the depth, of a row of `depth` values; zeros beyond. And the
  // reverse.
  static FUSEDLSTM_HOST_DEVICE Vec<T> load_along(const W* row, int64_t k, int64_t depth) {
    return widened<T>(row + k, depth - k);
  }
  static FUSEDLSTM_HOST_DEVICE void store_along(W* row, int64_t k, int64_t depth, Vec<T> elements) {
    store(row + k, elements, depth - k);
  }
  // Element k of a vector of columns of a matrix of `depth` rows; `columns` are left.
  static FUSEDLSTM_HOST_DEVICE Vec<T> load_across(const W* const* rows, int64_t k, int64_t /*depth*/,
                                                  int64_t column, int64_t columns) {
    return widened<T>(rows[k] + column, columns);
  }

  // Rows that are multiplied with unpacked weights.
  using Unpacked = DotRows<T, W>;

  // State of the processor while a row block is multiplied: none here.
  struct Setup {
    explicit Setup(int64_t /*count*/) {}
  };

  // Elements of workspace for a row block of S [kMC, depth].
  template <class S>
  static int64_t workspace(int64_t depth) {
    return std::is_same_v<S, T> ? 0 : kMC * row_stride(depth);
  }

  // A row block [count, depth].
  class RowBlock {
   public:
    template <class S>
    RowBlock(const S* const* rows, int64_t count, int64_t depth, T* workspace)
        : count_(count), depth_(depth) {
      if constexpr (std::is_same_v<S, T>) {
        std::copy_n(rows, count, rows_);
      } else {
        for (int64_t r = 0; r < count; ++r) {
          T* const row = workspace + r * row_stride(depth);
          for (int64_t k = 0; k < depth; k += kLanes<T>) store(row + k, widened<T>(rows[r] + k, depth - k));
          rows_[r] = row;
        }
      }
    }

    const T* const* rows() const { return rows_; }

    // sum [count, 4 vectors] += the rows times a panel; with two `vectors` or fewer its first half alone.
    void multiply(const T* panel, int64_t vectors, T* sum, int64_t kc = kKC) const {
      panel_gemm<T, MultiplyAdd<T>>(rows_, count_, depth_, panel, vectors, sum, kc);
    }

   private:
    const T* rows_[kMC];
    int64_t count_, depth_;
  };

 private:
  // Whole vectors, and one more, so that rows do not map to the same sets of the L1 cache.
  static int64_t row_stride(int64_t depth) { return (depth / kLanes<T> + 2) * kLanes<T>; }
};

// A row block [count, depth], to be multiplied with rows of a weight as they are stored.
template <class T, class W>
class DotRows {
 public:
  // Rows for which Panels::Setup prepares the processor: none, since vectors need no preparation.
  static constexpr int64_t kSetupRows = 0;

  template <class S>
  DotRows(const S* const* rows, int64_t count, int64_t depth, T* workspace)
      : block_(rows, count, depth, workspace), count_(count), depth_(depth) {}

  // sum [count, 4 gates, lanes] += the rows times those of the weight for some units, one vector at most.
  // `gate_stride` elements of the weight are from one gate to the next.
  void multiply(const W* weight, int64_t gate_stride, int64_t units, T* sum) const {
    for (int64_t gate = 0; gate < 4; ++gate)
      dot_gemm<T, W>(block_.rows(), count_, weight + gate * gate_stride, depth_, units, depth_,
                     sum + gate * kLanes<T>, kNR<T>);
  }

 private:
  typename VectorPanels<T, W>::RowBlock block_;
  int64_t count_, depth_;
};

// Packs a matrix [depth, columns]; columns that do not exist become zero.
template <class T, class W, class Panels>
void pack_panels(const W* const* rows, int64_t depth, int64_t columns, Range panels, T* packed) {
  const int64_t packed_depth = Panels::packed_depth(depth);
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    T* const out = packed + panel * packed_depth * kNR<T>;
    const int64_t first = panel * kNR<T>, count = std::min(kNR<T>, columns - first);
    for (int64_t k = 0; k < packed_depth; ++k)
      for (int64_t v = 0; v < 4; ++v) {
        const int64_t column = v * kLanes<T>;
        store(
            out + panel_offset<T>(packed_depth, v / 2, k) + v % 2 * kLanes<T>,
            column < count ? Panels::load_across(rows, k, depth, first + column, count - column) : Vec<T>{});
      }
  }
}

// Packs W_ih or W_hh [4H, depth]. A panel has one vector of units of each gate, i f | g o.
template <class T, class W, class Panels>
void pack_gates(const W* weight, int64_t hidden, int64_t depth, Range panels, T* packed) {
  constexpr int64_t L = kLanes<T>;
  const int64_t packed_depth = Panels::packed_depth(depth);
  for (int64_t panel = panels.begin; panel < panels.end; ++panel)
    for (int64_t gate = 0; gate < 4; ++gate) {
      const int64_t unit = panel * L, units = std::min(L, hidden - unit);
      const W* const rows = weight + (gate * hidden + unit) * depth;
      T* const out = packed + panel * packed_depth * kNR<T> + gate % 2 * L;
      for (int64_t k = 0; k < packed_depth; k += L) {
        Vec<T> square[L];
        for (int64_t j = 0; j < L; ++j)
          square[j] = j < units ? Panels::load_along(rows + j * depth, k, depth) : Vec<T>{};
        transpose_square<T>(square);
        for (int64_t i = 0; i < std::min(L, packed_depth - k); ++i)
          store(out + panel_offset<T>(packed_depth, gate / 2, k + i), square[i]);
      }
    }
}

// out[column, k] = rows[k][column].
template <class T, class W, class Panels>
void transpose(const W* const* rows, int64_t depth, Range columns, W* out) {
  constexpr int64_t L = kLanes<T>;
  const int64_t packed_depth = Panels::packed_depth(depth);
  for (int64_t column = columns.begin; column < columns.end; column += L)
    for (int64_t k = 0; k < packed_depth; k += L) {
      const int64_t width = std::min(L, columns.end - column), height = std::min(L, packed_depth - k);
      Vec<T> square[L];
      for (int64_t i = 0; i < L; ++i)
        square[i] = i < height ? Panels::load_across(rows, k + i, depth, column, width) : Vec<T>{};
      transpose_square<T>(square);
      for (int64_t j = 0; j < width; ++j)
        Panels::store_along(out + (column + j) * depth, k, depth, square[j]);
    }
}

// As BackwardKernels::gemm. `sums` are added once, so that the rounding error does not grow with the parts of
// the depth.
template <class T, class W, class Panels>
void gemm(const W* a, int64_t rows, const T* panels, int64_t columns, int64_t depth, int64_t kc, bool adds,
          T* sums, W* out, int64_t out_stride, T* workspace) {
  constexpr int64_t L = kLanes<T>, NR = kNR<T>;
  const int64_t packed_depth = Panels::packed_depth(depth);
  for (int64_t begin = 0, next; begin < rows; begin = next) {
    next = begin + next_mc(rows - begin);
    const int64_t count = next - begin;
    const W* row[kMC];
    for (int64_t r = 0; r < count; ++r) row[r] = a + (begin + r) * depth;
    const typename Panels::Setup setup(count);
    const typename Panels::RowBlock block(row, count, depth, workspace);
    for (int64_t column = 0; column < columns; column += NR) {
      const int64_t vectors = panel_vectors<T>(columns - column);
      alignas(64) T sum[kMC * NR];
      for (int64_t i = 0; i < count * NR; i += L) store(sum + i, Vec<T>{});
      block.multiply(panels + column * packed_depth, vectors, sum, kc);
      for (int64_t r = 0; r < count; ++r)
        for (int64_t v = 0; v < vectors; ++v) {
          const int64_t at = (begin + r) * out_stride + column + v * L, width = columns - column - v * L;
          Vec<T> value = load(sum + (4 * r + v) * L);
          if (adds) value += load(sums + at, width);
          if (out)
            store(out + at, value, width);
          else
            store(sums + at, value, width);
        }
    }
  }
}
