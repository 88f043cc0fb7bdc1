// The two matrix products that all others are made of. Included by kernels.inl alone, inside the namespace of
// one instruction set. Loops are named as in BLIS: MC rows share a panel in the L1 cache, KC of the depth is
// summed in registers, MR rows of a tile are computed at once.
//
// Dot products: out = a w^T, with weights as nn.LSTM stores them. Both factors are read along the depth, and
// a tile ends with a sum over the lanes of each of its vectors.
// Panels: out = a b, with b packed into panels of kNR = 4 vectors of columns. A tile multiplies one value of
// each row with vectors of columns, and its sums are stored as they are. It is 10 to 50% faster,
// which pays for packing if a weight is used often enough.
//
// Floating-point contraction: every `sum += a * b` must become one fused multiply-add where the instruction
// set has it. A row's bits would otherwise depend on the height of the tile it is in, and so on the number of
// threads. The build relies on g++'s default, -ffp-contract=fast.

#include "simd.inl"

// Rows of a tile (BLIS: MR) that is four vectors wide. A tile two vectors wide has twice as many.
constexpr int kMR = kAccumulators / 4;
constexpr int kTallMR = 2 * kMR;

// Height of the next tile if so many rows are left. The last two are of about equal height, since a tile of a
// single row is slow.
FUSEDLSTM_HOST_DEVICE int64_t next_mr(int64_t left) {
  return left <= kMR ? left : left < 2 * kMR ? (left + 1) / 2 : kMR;
}
// Rows of the next row block, at most kMC: whole tiles, and the last two blocks of about equal height.
FUSEDLSTM_HOST_DEVICE int64_t next_mc(int64_t left) {
  if (left <= kMC) return left;
  const int64_t tiles = left < 2 * kMC ? (left + 2 * kMR - 1) / (2 * kMR) : kMC / kMR;
  return tiles * kMR;
}

// Columns of a tile of dot products.
template <class T>
inline constexpr int kDotColumns = kLanes<T> < 4 ? kLanes<T> : 4;
// KC of dot products: at most 2 KiB of each weight row, which stay in the L1 cache while all
// rows of `a` use them. A longer depth is divided evenly.
template <class T>
inline constexpr int64_t kDotKC = 2048 / sizeof(T);
template <class T>
FUSEDLSTM_HOST_DEVICE int64_t dot_kc(int64_t depth) {
  if (depth <= kDotKC<T>) return depth;
  const int64_t blocks = (depth + kDotKC<T> - 1) / kDotKC<T>;
  return (depth + blocks * kLanes<T> - 1) / (blocks * kLanes<T>)*kLanes<T>;
}

// out[r * out_stride + c] += dot(a[r], row c of w) over k in [begin, end), for R rows and C columns whose
// depth is one vector at least.
template <class T, class W, int R, int C>
FUSEDLSTM_HOST_DEVICE void dot_microkernel(const T* const* a, const W* w, int64_t w_stride, int64_t begin,
                                           int64_t end, T* out, int64_t out_stride) {
  constexpr int64_t L = kLanes<T>;
  Vec<T> sum[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) sum[r][c] = Vec<T>{};
  // One vector of each row from k on, or only its last lanes.
  const auto add = [&](int64_t k, auto whole, int64_t lanes) __attribute__((always_inline)) {
    Vec<T> values[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      values[r] = load(a[r] + k);
      if constexpr (!whole.value) values[r] = last_lanes<T>(values[r], lanes);
    }
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      Vec<T> column = widened<T>(w + c * w_stride + k);
      if constexpr (!whole.value) column = last_lanes<T>(column, lanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[r][c] += values[r] * column;
    }
  };
  int64_t k = begin;
  for (; k + L <= end; k += L) add(k, std::true_type{}, L);
  if (k < end) add(end - L, std::false_type{}, end - k);  // without the lanes that were added already
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    if constexpr (C == 1) {
      const Vec<T> columns[kDotColumns<T>] = {sum[r][0]};
      T one[kDotColumns<T>] = {out[r * out_stride]};
      add_sums<T>(columns, one);
      out[r * out_stride] = one[0];
    } else {
#pragma GCC unroll 8
      for (int c = 0; c < C; c += kDotColumns<T>) add_sums<T>(sum[r] + c, out + r * out_stride + c);
    }
  }
}

// The same for `count` rows, at most R.
template <class T, class W, int C, int R = kMR>
FUSEDLSTM_HOST_DEVICE void dot_tile(const T* const* a, int64_t count, const W* w, int64_t w_stride,
                                    int64_t begin, int64_t end, T* out, int64_t out_stride) {
  if constexpr (R > 1) {
    if (count < R) return dot_tile<T, W, C, R - 1>(a, count, w, w_stride, begin, end, out, out_stride);
  }
  dot_microkernel<T, W, R, C>(a, w, w_stride, begin, end, out, out_stride);
}

// The same for a whole vector of columns. A single row takes twice the columns at once, so that it has enough
// sums to hide the latency of an addition.
template <class T, class W>
FUSEDLSTM_HOST_DEVICE void dot_vector(const T* const* a, int64_t count, const W* w, int64_t w_stride,
                                      int64_t begin, int64_t end, T* out, int64_t out_stride) {
  constexpr int C = kDotColumns<T>, wide = kLanes<T> % (2 * C) == 0 ? 2 * C : C;
  if (count == 1) {
    for (int64_t c = 0; c < kLanes<T>; c += wide)
      dot_microkernel<T, W, 1, wide>(a, w + c * w_stride, w_stride, begin, end, out + c, out_stride);
  } else {
    for (int64_t c = 0; c < kLanes<T>; c += C)
      dot_tile<T, W, C>(a, count, w + c * w_stride, w_stride, begin, end, out + c, out_stride);
  }
}

// out[r * out_stride + c] += dot(a[r], row c of w), for at most kMC rows and kLanes columns.
template <class T, class W>
void dot_gemm(const T* const* a, int64_t count, const W* w, int64_t w_stride, int64_t columns, int64_t depth,
              T* out, int64_t out_stride) {
  constexpr int64_t L = kLanes<T>;
  if (depth < L) {
    for (int64_t r = 0; r < count; ++r)
      for (int64_t c = 0; c < columns; ++c)
        for (int64_t k = 0; k < depth; ++k)
          out[r * out_stride + c] += a[r][k] * widened<T>(w + c * w_stride + k, 1)[0];
    return;
  }
  const int64_t kc = dot_kc<T>(depth);
  for (int64_t begin = 0; begin < depth; begin += kc) {
    const int64_t end = std::min(begin + kc, depth);
    for (int64_t first = 0; first < count;) {
      const int64_t height = next_mr(count - first);
      const T* const* const rows = a + first;
      T* const to = out + first * out_stride;
      if (columns == L) {
        dot_vector<T, W>(rows, height, w, w_stride, begin, end, to, out_stride);
      } else {
        for (int64_t c = 0; c < columns; ++c)
          dot_tile<T, W, 1>(rows, height, w + c * w_stride, w_stride, begin, end, to + c, out_stride);
      }
      first += height;
    }
  }
}

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
template <class T, int R, int C>
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
        const Vec<T> value = splat(row[i]);
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) part[r][c] += value * columns[i][c];
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
template <class T, int C, int R>
FUSEDLSTM_HOST_DEVICE void panel_tile(const T* const* a, int64_t count, int64_t begin, int64_t end,
                                      const T* panel, int64_t half_stride, T* sum) {
  if constexpr (R > 1) {
    if (count < R) return panel_tile<T, C, R - 1>(a, count, begin, end, panel, half_stride, sum);
  }
  panel_microkernel<T, R, C>(a, begin, end, panel, half_stride, sum);
}

// sum [count, 4 vectors] += a [count, depth] times a panel, for at most kMC rows, or none. With two `vectors`
// or fewer the second half of the panel is left out.
template <class T>
void panel_gemm(const T* const* a, int64_t count, int64_t depth, const T* panel, int64_t vectors, T* sum,
                int64_t kc = kKC) {
  constexpr int64_t L = kLanes<T>;
  const int64_t half_stride = panel_offset<T>(depth, 1, 0);
  if (count > 0 && count <= kMR && vectors > 2) {
    for (int64_t begin = 0; begin < depth; begin += kc)
      panel_tile<T, 4, kMR>(a, count, begin, std::min(begin + kc, depth), panel, half_stride, sum);
    return;
  }
  const int64_t tiles = (count + kTallMR - 1) / kTallMR;
  for (int64_t half = 0; 2 * half < vectors; ++half)
    for (int64_t begin = 0; begin < depth; begin += kc) {
      const int64_t end = std::min(begin + kc, depth);
      for (int64_t tile = 0, first = 0; tile < tiles; ++tile) {
        const int64_t height = (count - first + tiles - tile - 1) / (tiles - tile);
        panel_tile<T, 2, kTallMR>(a + first, height, begin, end, panel + half * half_stride, 0,
                                  sum + (4 * first + 2 * half) * L);
        first += height;
      }
    }
}

// Packs a matrix [depth, columns]; columns that do not exist become zero.
template <class T>
void pack_panels(const T* const* rows, int64_t depth, int64_t columns, Range panels, T* packed) {
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    T* const out = packed + panel * depth * kNR<T>;
    const int64_t first = panel * kNR<T>, count = std::min(kNR<T>, columns - first);
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t v = 0; v < 4; ++v)
        store(
            out + panel_offset<T>(depth, v / 2, k) + v % 2 * kLanes<T>,
            v * kLanes<T> < count ? load(rows[k] + first + v * kLanes<T>, count - v * kLanes<T>) : Vec<T>{});
  }
}

// out[column, k] = rows[k][column].
template <class T>
void transpose(const T* const* rows, int64_t depth, Range columns, T* out) {
  constexpr int64_t L = kLanes<T>;
  for (int64_t column = columns.begin; column < columns.end; column += L)
    for (int64_t k = 0; k < depth; k += L) {
      const int64_t width = std::min(L, columns.end - column), height = std::min(L, depth - k);
      Vec<T> square[L];
      for (int64_t i = 0; i < L; ++i) square[i] = i < height ? load(rows[k + i] + column, width) : Vec<T>{};
      transpose_square<T>(square);
      for (int64_t j = 0; j < width; ++j) store(out + (column + j) * depth + k, square[j], height);
    }
}

// Depth of a tile of the product below: a sum in registers covers so much before it is added to memory.
constexpr int kUnpackedK = 8;

// out [R, columns] = a [R, K] times the rows b [K, columns], or += with `adds`.
template <class T, int R, int K>
void unpacked_microkernel(const T (*a)[kUnpackedK], const T* const* b, int64_t columns, bool adds, T* out,
                          int64_t out_stride) {
  Vec<T> value[R][K];
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) value[r][k] = splat(a[r][k]);
  const auto add = [&](int64_t column, int64_t left) __attribute__((always_inline)) {
    Vec<T> sum[R];
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) sum[r] = Vec<T>{};
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) {
      const Vec<T> row = load(b[k] + column, left);
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) sum[r] += value[r][k] * row;
    }
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      T* const to = out + r * out_stride + column;
      store(to, adds ? load(to, left) + sum[r] : sum[r], left);
    }
  };
  int64_t column = 0;
  for (; column + kLanes<T> <= columns; column += kLanes<T>) add(column, kLanes<T>);
  if (column < columns) add(column, columns - column);
}

// The same for `depth` rows of b, at most K.
template <class T, int R, int K = kUnpackedK>
void unpacked_tile(const T (*a)[kUnpackedK], const T* const* b, int64_t depth, int64_t columns, bool adds,
                   T* out, int64_t out_stride) {
  if constexpr (K > 1) {
    if (depth < K) return unpacked_tile<T, R, K - 1>(a, b, depth, columns, adds, out, out_stride);
  }
  unpacked_microkernel<T, R, K>(a, b, columns, adds, out, out_stride);
}

// The same for a row block and k in [begin, end). a(r, k) is a value of a, b(k) a row of b.
template <class T, class A, class B>
void unpacked_rows(const A& a, int64_t rows, int64_t begin, int64_t end, const B& b, int64_t columns,
                   bool adds, T* out, int64_t out_stride) {
  for (int64_t k = begin; k < end; k += kUnpackedK) {
    const int64_t depth = std::min<int64_t>(kUnpackedK, end - k);
    const T* b_row[kUnpackedK];
    for (int64_t i = 0; i < depth; ++i) b_row[i] = b(k + i);
    for (int64_t r = 0; r < rows; r += 2) {
      const int64_t height = std::min<int64_t>(2, rows - r);
      T values[2][kUnpackedK];
      for (int64_t j = 0; j < height; ++j)
        for (int64_t i = 0; i < depth; ++i) values[j][i] = a(r + j, k + i);
      const auto tile = height == 2 ? unpacked_tile<T, 2> : unpacked_tile<T, 1>;
      tile(values, b_row, depth, columns, adds || k > begin, out + r * out_stride, out_stride);
    }
  }
}

// out [rows, columns] = a [rows, depth] times b [depth, columns], or += with `adds`. b is read as it is
// stored, row after row, which suits few rows of a or a small depth. Each KC of the depth is summed apart, so
// that the rounding error does not grow with the depth.
template <class T, class A, class B>
void unpacked_gemm(const A& a, int64_t rows, int64_t depth, const B& b, int64_t columns, bool adds, T* out,
                   int64_t out_stride) {
  constexpr int64_t L = kLanes<T>,
                    NC = 1024 / sizeof(T);  // the sums of a part of the depth stay in the L1 cache
  for (int64_t r = 0; r < rows && depth == 0 && !adds; ++r) std::fill_n(out + r * out_stride, columns, T(0));
  for (int64_t first = 0; first < rows; first += kMC) {
    const int64_t count = std::min<int64_t>(kMC, rows - first);
    const auto a_block = [&](int64_t r, int64_t k) { return a(first + r, k); };
    T* const to = out + first * out_stride;
    unpacked_rows(a_block, count, 0, std::min(depth, kKC), b, columns, adds, to, out_stride);
    for (int64_t column = 0; column < columns && depth > kKC; column += NC) {
      const int64_t width = std::min(NC, columns - column);
      const auto b_block = [&](int64_t k) { return b(k) + column; };
      for (int64_t begin = kKC; begin < depth; begin += kKC) {
        alignas(64) T sum[kMC * NC];
        unpacked_rows(a_block, count, begin, std::min(begin + kKC, depth), b_block, width, false, sum, NC);
        for (int64_t r = 0; r < count; ++r)
          for (int64_t c = 0; c < width; c += L) {
            T* const at = to + r * out_stride + column + c;
            store(at, load(at, width - c) + load(sum + r * NC + c, width - c), width - c);
          }
      }
    }
  }
}

// The same for a of any strides.
template <class T>
void gemm_unpacked(const T* a, int64_t a_row, int64_t a_depth, int64_t rows, const T* const* b, int64_t depth,
                   int64_t columns, bool adds, T* out, int64_t out_stride) {
  unpacked_gemm([&](int64_t r, int64_t k) { return a[r * a_row + k * a_depth]; }, rows, depth,
                [&](int64_t k) { return b[k]; }, columns, adds, out, out_stride);
}

// out = a times a packed matrix, or += with `adds`: once, so that the rounding error does not grow with the
// parts of the depth.
template <class T>
void gemm(const T* a, int64_t rows, const T* panels, int64_t columns, int64_t depth, int64_t kc, bool adds,
          T* out, int64_t out_stride) {
  constexpr int64_t L = kLanes<T>, NR = kNR<T>;
  for (int64_t begin = 0, next; begin < rows; begin = next) {
    next = begin + next_mc(rows - begin);
    const int64_t count = next - begin;
    const T* row[kMC];
    for (int64_t r = 0; r < count; ++r) row[r] = a + (begin + r) * depth;
    for (int64_t column = 0; column < columns; column += NR) {
      const int64_t vectors = panel_vectors<T>(columns - column);
      T* const to = out + begin * out_stride + column;
      alignas(64) T sum[kMC * NR];
      for (int64_t i = 0; i < count * NR; i += L) store(sum + i, Vec<T>{});
      panel_gemm<T>(row, count, depth, panels + column * depth, vectors, sum, kc);
      for (int64_t r = 0; r < count; ++r)
        for (int64_t v = 0; v < vectors; ++v) {
          T* const at = to + r * out_stride + v * L;
          const int64_t width = columns - column - v * L;
          const Vec<T> own = load(sum + (4 * r + v) * L);
          store(at, adds ? load(at, width) + own : own, width);
        }
    }
  }
}
