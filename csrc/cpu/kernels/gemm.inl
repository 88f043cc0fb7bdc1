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

// How elements are multiplied and added up: as T.
template <class T>
struct MultiplyAdd {
  static FUSEDLSTM_HOST_DEVICE Vec<T> splat_element(const T* element) { return splat(*element); }
  static FUSEDLSTM_HOST_DEVICE void add(Vec<T>& sum, Vec<T> value, Vec<T> column) { sum += value * column; }
};

// out[r * out_stride + c] += dot(a[r], row c of w) over k in [begin, end), for R rows and C columns whose
// depth is one vector at least.
template <class T, class W, class Arithmetic, int R, int C>
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
      for (int r = 0; r < R; ++r) Arithmetic::add(sum[r][c], values[r], column);
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
template <class T, class W, class Arithmetic, int C, int R = kMR>
FUSEDLSTM_HOST_DEVICE void dot_tile(const T* const* a, int64_t count, const W* w, int64_t w_stride,
                                    int64_t begin, int64_t end, T* out, int64_t out_stride) {
  if constexpr (R > 1) {
    if (count < R)
      return dot_tile<T, W, Arithmetic, C, R - 1>(a, count, w, w_stride, begin, end, out, out_stride);
  }
  dot_microkernel<T, W, Arithmetic, R, C>(a, w, w_stride, begin, end, out, out_stride);
}

// The same for a whole vector of columns. A single row takes twice the columns at once, so that it has enough
// sums to hide the latency of an addition.
template <class T, class W, class Arithmetic>
FUSEDLSTM_HOST_DEVICE void dot_vector(const T* const* a, int64_t count, const W* w, int64_t w_stride,
                                      int64_t begin, int64_t end, T* out, int64_t out_stride) {
  constexpr int C = kDotColumns<T>, wide = kLanes<T> % (2 * C) == 0 ? 2 * C : C;
  if (count == 1) {
    for (int64_t c = 0; c < kLanes<T>; c += wide)
      dot_microkernel<T, W, Arithmetic, 1, wide>(a, w + c * w_stride, w_stride, begin, end, out + c,
                                                 out_stride);
  } else {
    for (int64_t c = 0; c < kLanes<T>; c += C)
      dot_tile<T, W, Arithmetic, C>(a, count, w + c * w_stride, w_stride, begin, end, out + c, out_stride);
  }
}

// out[r * out_stride + c] += dot(a[r], row c of w), for at most kMC rows and kLanes columns.
template <class T, class W, class Arithmetic = MultiplyAdd<T>>
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
        dot_vector<T, W, Arithmetic>(rows, height, w, w_stride, begin, end, to, out_stride);
      } else {
        for (int64_t c = 0; c < columns; ++c)
          dot_tile<T, W, Arithmetic, 1>(rows, height, w + c * w_stride, w_stride, begin, end, to + c,
                                        out_stride);
      }
      first += height;
    }
  }
}

// Depth of a tile of the product below: a sum in registers covers so much before it is added to memory.
constexpr int kUnpackedK = 8;

// out [R, columns] = a [R, K] times the rows b [K, columns], or += with `adds`.
template <class T, class W, int R, int K>
void unpacked_microkernel(const T (*a)[kUnpackedK], const W* const* b, int64_t columns, bool adds, T* out,
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
      const Vec<T> row = widened<T>(b[k] + column, left);
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
template <class T, class W, int R, int K = kUnpackedK>
void unpacked_tile(const T (*a)[kUnpackedK], const W* const* b, int64_t depth, int64_t columns, bool adds,
                   T* out, int64_t out_stride) {
  if constexpr (K > 1) {
    if (depth < K) return unpacked_tile<T, W, R, K - 1>(a, b, depth, columns, adds, out, out_stride);
  }
  unpacked_microkernel<T, W, R, K>(a, b, columns, adds, out, out_stride);
}

// The same for a row block and k in [begin, end). a(r, k) is a value of a, b(k) a row of b.
template <class T, class W, class A, class B>
void unpacked_rows(const A& a, int64_t rows, int64_t begin, int64_t end, const B& b, int64_t columns,
                   bool adds, T* out, int64_t out_stride) {
  for (int64_t k = begin; k < end; k += kUnpackedK) {
    const int64_t depth = std::min<int64_t>(kUnpackedK, end - k);
    const W* b_row[kUnpackedK];
    for (int64_t i = 0; i < depth; ++i) b_row[i] = b(k + i);
    for (int64_t r = 0; r < rows; r += 2) {
      const int64_t height = std::min<int64_t>(2, rows - r);
      T values[2][kUnpackedK];
      for (int64_t j = 0; j < height; ++j)
        for (int64_t i = 0; i < depth; ++i) values[j][i] = widen(a(r + j, k + i));
      const auto tile = height == 2 ? unpacked_tile<T, W, 2> : unpacked_tile<T, W, 1>;
      tile(values, b_row, depth, columns, adds || k > begin, out + r * out_stride, out_stride);
    }
  }
}

// out [rows, columns] = a [rows, depth] times b [depth, columns], or += with `adds`. b is read as it is
// stored, row after row, which suits few rows of a or a small depth. Each KC of the depth is summed apart, so
// that the rounding error does not grow with the depth.
template <class T, class W, class A, class B>
void unpacked_gemm(const A& a, int64_t rows, int64_t depth, const B& b, int64_t columns, bool adds, T* out,
                   int64_t out_stride) {
  constexpr int64_t L = kLanes<T>,
                    NC = 1024 / sizeof(T);  // the sums of a part of the depth stay in the L1 cache
  for (int64_t r = 0; r < rows && depth == 0 && !adds; ++r) std::fill_n(out + r * out_stride, columns, T(0));
  for (int64_t first = 0; first < rows; first += kMC) {
    const int64_t count = std::min<int64_t>(kMC, rows - first);
    const auto a_block = [&](int64_t r, int64_t k) { return a(first + r, k); };
    T* const to = out + first * out_stride;
    unpacked_rows<T, W>(a_block, count, 0, std::min(depth, kKC), b, columns, adds, to, out_stride);
    for (int64_t column = 0; column < columns && depth > kKC; column += NC) {
      const int64_t width = std::min(NC, columns - column);
      const auto b_block = [&](int64_t k) { return b(k) + column; };
      for (int64_t begin = kKC; begin < depth; begin += kKC) {
        alignas(64) T sum[kMC * NC];
        unpacked_rows<T, W>(a_block, count, begin, std::min(begin + kKC, depth), b_block, width, false, sum,
                            NC);
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
template <class T, class W>
void gemm_unpacked(const W* a, int64_t a_row, int64_t a_depth, int64_t rows, const W* const* b, int64_t depth,
                   int64_t columns, bool adds, T* out, int64_t out_stride) {
  unpacked_gemm<T, W>([&](int64_t r, int64_t k) { return a[r * a_row + k * a_depth]; }, rows, depth,
                      [&](int64_t k) { return b[k]; }, columns, adds, out, out_stride);
}
