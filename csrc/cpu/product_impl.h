// The two products everything is made of. Included by kernel_impl.h alone, inside the namespace of one
// instruction set.
//
// By rows: a table of dot products, for the rows of x, h, W_ih, W_hh and W_hr are what the sums run along.
// Weights are read as nn.LSTM keeps them, and a tile ends with the sum of the lanes of each of its vectors.
//
// By panels: weights packed four vectors of columns wide. A tile multiplies a value of each row with vectors
// of columns, and ends with its sums as they are stored: a tenth to a half faster, which pays for the packing
// where a weight is used often enough.

#include "simd.h"

// Terms of a sum between two additions to memory: the rows of a tile of weights then stay in the L1 cache (2
// KiB each) while all rows of the other factor use them, and the rounding error grows with this length.
template <class T>
inline constexpr int64_t kPieceTerms = 2048 / sizeof(T);
template <class T>
FUSEDLSTM_HOST_DEVICE int64_t piece_terms(int64_t depth) {
  if (depth <= kPieceTerms<T>) return depth;
  const int64_t pieces = (depth + kPieceTerms<T> - 1) / kPieceTerms<T>;
  return (depth + pieces * kLanes<T> - 1) / (pieces * kLanes<T>)*kLanes<T>;
}
// Rows of one factor that use a tile of the other while it is in the L1 cache.
constexpr int kGroupRows = 48;
// A tile is kTileRows rows by kTileColumns columns of sums in registers.
template <class T>
inline constexpr int kTileColumns = kLanes<T> < 4 ? kLanes<T> : 4;
constexpr int kTileRows = kAccumulators / 4;

// Rows of the next tile, or group, when so many are left: the last ones are of equal height, so that none is
// left with a single row.
FUSEDLSTM_HOST_DEVICE int64_t tile_height(int64_t left) {
  return left <= kTileRows ? left : left < 2 * kTileRows ? (left + 1) / 2 : kTileRows;
}
FUSEDLSTM_HOST_DEVICE int64_t group_rows(int64_t left) {
  if (left <= kGroupRows) return left;
  const int64_t tiles =
      left < 2 * kGroupRows ? (left + 2 * kTileRows - 1) / (2 * kTileRows) : kGroupRows / kTileRows;
  return tiles * kTileRows;
}

// out[r * out_stride + c] += dot(a[r], row c of w) over terms begin to end, of rows that hold a vector at
// least.
template <class T, class W, int R, int C>
FUSEDLSTM_HOST_DEVICE void multiply_tile(const T* const* a, const W* w, int64_t w_stride, int64_t begin,
                                         int64_t end, T* out, int64_t out_stride) {
  constexpr int64_t L = kLanes<T>;
  Vec<T> sum[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) sum[r][c] = Vec<T>{};
  // The vectors at k, or of them the last lanes alone.
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
  if (k < end) add(end - L, std::false_type{}, end - k);  // without what was counted already
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    if constexpr (C == 1) {
      const Vec<T> columns[kTileColumns<T>] = {sum[r][0]};
      T one[kTileColumns<T>] = {out[r * out_stride]};
      add_sums<T>(columns, one);
      out[r * out_stride] = one[0];
    } else {
#pragma GCC unroll 8
      for (int c = 0; c < C; c += kTileColumns<T>) add_sums<T>(sum[r] + c, out + r * out_stride + c);
    }
  }
}

// The same for `count` rows, at most R, and C columns.
template <class T, class W, int C, int R = kTileRows>
FUSEDLSTM_HOST_DEVICE void multiply_rows(const T* const* a, int64_t count, const W* w, int64_t w_stride,
                                         int64_t begin, int64_t end, T* out, int64_t out_stride) {
  if constexpr (R > 1) {
    if (count < R) return multiply_rows<T, W, C, R - 1>(a, count, w, w_stride, begin, end, out, out_stride);
  }
  multiply_tile<T, W, R, C>(a, w, w_stride, begin, end, out, out_stride);
}

// And for a whole block of columns. A single row takes more of them at once, for enough sums to hide the
// latency of an addition.
template <class T, class W>
FUSEDLSTM_HOST_DEVICE void multiply_block(const T* const* a, int64_t count, const W* w, int64_t w_stride,
                                          int64_t begin, int64_t end, T* out, int64_t out_stride) {
  constexpr int C = kTileColumns<T>, two = kLanes<T> % (2 * C) == 0 ? 2 * C : C;
  if (count == 1) {
    for (int64_t c = 0; c < kLanes<T>; c += two)
      multiply_tile<T, W, 1, two>(a, w + c * w_stride, w_stride, begin, end, out + c, out_stride);
  } else {
    for (int64_t c = 0; c < kLanes<T>; c += C)
      multiply_rows<T, W, C>(a, count, w + c * w_stride, w_stride, begin, end, out + c, out_stride);
  }
}

// out[r * out_stride + c] += dot(a[r], row c of w), for `count` rows, at most kGroupRows, and `columns` rows
// of w, at most kLanes.
template <class T, class W>
void multiply(const T* const* a, int64_t count, const W* w, int64_t w_stride, int64_t columns, int64_t depth,
              T* out, int64_t out_stride) {
  constexpr int64_t L = kLanes<T>;
  if (depth < L) {
    for (int64_t r = 0; r < count; ++r)
      for (int64_t c = 0; c < columns; ++c)
        for (int64_t k = 0; k < depth; ++k)
          out[r * out_stride + c] += a[r][k] * widened<T>(w + c * w_stride + k, 1)[0];
    return;
  }
  const int64_t length = piece_terms<T>(depth);
  for (int64_t begin = 0; begin < depth; begin += length) {
    const int64_t end = std::min(begin + length, depth);
    for (int64_t first = 0; first < count;) {
      const int64_t height = tile_height(count - first);
      const T* const* const rows = a + first;
      T* const to = out + first * out_stride;
      if (columns == L) {
        multiply_block<T, W>(rows, height, w, w_stride, begin, end, to, out_stride);
      } else {
        for (int64_t c = 0; c < columns; ++c)
          multiply_rows<T, W, 1>(rows, height, w + c * w_stride, w_stride, begin, end, to + c, out_stride);
      }
      first += height;
    }
  }
}

// Panels are read ahead of their use, from the L2 cache or beyond.
constexpr int64_t kTermsAhead = 48;
template <class T>
inline constexpr int64_t kPanelColumns = 4 * kLanes<T>;
// A tile of half a panel takes twice the rows of one of a whole panel.
constexpr int kHalfTileRows = 2 * kTileRows;
// Terms of half a panel that are added in one go, where the addresses of so many rows do not fit the general
// registers (x86-64 has 16): each is then fetched once for all of them. Their columns take a register each.
constexpr int kTermsAtOnce = kHalfTileRows > 10 ? 3 : 1;

// Vectors of a panel that hold some of the columns that are left.
template <class T>
FUSEDLSTM_HOST_DEVICE int64_t panel_vectors(int64_t columns) {
  return std::min<int64_t>(4, (columns + kLanes<T> - 1) / kLanes<T>);
}
// Where term k of half a panel's columns lies.
template <class T>
FUSEDLSTM_HOST_DEVICE int64_t panel_place(int64_t depth, int64_t half, int64_t k) {
  return (half * depth + k) * 2 * kLanes<T>;
}

// sum[r, c] += dot(a[r], column vector c), for C = 2 vectors of half a panel, or for all 4, those of the
// second half `other` elements further.
template <class T, int R, int C>
FUSEDLSTM_HOST_DEVICE void multiply_panel_tile(const T* const* a, int64_t begin, int64_t end, const T* panel,
                                               int64_t other, T* sum) {
  constexpr int64_t L = kLanes<T>;
  Vec<T> part[R][C];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) part[r][c] = Vec<T>{};
  const auto add = [&](int64_t k, auto terms) __attribute__((always_inline)) {
    Vec<T> columns[terms.value][C];
#pragma GCC unroll 4
    for (int i = 0; i < terms.value; ++i)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) {
        const T* const column = panel + (k + i) * 2 * L + c % 2 * L + c / 2 * other;
        columns[i][c] = load(column);
        if (c % 2 * kVectorBytes % 64 == 0) __builtin_prefetch(column + kTermsAhead * 2 * L);
      }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const T* const row = a[r] + k;
#pragma GCC unroll 4
      for (int i = 0; i < terms.value; ++i) {
        const Vec<T> value = splat(row[i]);
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) part[r][c] += value * columns[i][c];
      }
    }
  };
  constexpr int kTerms = C == 2 ? kTermsAtOnce : 1;
  int64_t k = begin;
  for (; k + kTerms <= end; k += kTerms) add(k, std::integral_constant<int, kTerms>());
  for (; k < end; ++k) add(k, std::integral_constant<int, 1>());
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) store(sum + (4 * r + c) * L, load(sum + (4 * r + c) * L) + part[r][c]);
}

template <class T, int C, int R>
FUSEDLSTM_HOST_DEVICE void multiply_panel_rows(const T* const* a, int64_t count, int64_t begin, int64_t end,
                                               const T* panel, int64_t other, T* sum) {
  if constexpr (R > 1) {
    if (count < R) return multiply_panel_rows<T, C, R - 1>(a, count, begin, end, panel, other, sum);
  }
  multiply_panel_tile<T, R, C>(a, begin, end, panel, other, sum);
}

// sum [count, 4, lanes] += a [count, depth] times a panel, for at most kGroupRows rows and, where just two
// are wanted, without the last two vectors of columns; `piece` terms are summed between two additions to
// memory.
template <class T>
void multiply_panel(const T* const* a, int64_t count, int64_t depth, const T* panel, int64_t vectors, T* sum,
                    int64_t piece = kPanelTerms) {
  constexpr int64_t L = kLanes<T>;
  const int64_t other = panel_place<T>(depth, 1, 0);
  if (count <= kTileRows && vectors > 2) {
    for (int64_t begin = 0; begin < depth; begin += piece)
      multiply_panel_rows<T, 4, kTileRows>(a, count, begin, std::min(begin + piece, depth), panel, other,
                                           sum);
    return;
  }
  const int64_t tiles = (count + kHalfTileRows - 1) / kHalfTileRows;
  for (int64_t half = 0; 2 * half < vectors; ++half)
    for (int64_t begin = 0; begin < depth; begin += piece) {
      const int64_t end = std::min(begin + piece, depth);
      for (int64_t tile = 0, first = 0; tile < tiles; ++tile) {
        const int64_t height = (count - first + tiles - tile - 1) / (tiles - tile);
        multiply_panel_rows<T, 2, kHalfTileRows>(a + first, height, begin, end, panel + half * other, 0,
                                                 sum + (4 * first + 2 * half) * L);
        first += height;
      }
    }
}

// Packs panels [begin, end) of a matrix [depth, columns]; columns that do not exist become zero.
template <class T>
void pack_panels(const T* const* rows, int64_t depth, int64_t columns, int64_t begin, int64_t end,
                 T* panels) {
  constexpr int64_t C = kPanelColumns<T>;
  for (int64_t panel = begin; panel < end; ++panel) {
    T* const out = panels + panel * depth * C;
    const int64_t first = panel * C, count = std::min(C, columns - first);
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t v = 0; v < 4; ++v)
        store(
            out + panel_place<T>(depth, v / 2, k) + v % 2 * kLanes<T>,
            v * kLanes<T> < count ? load(rows[k] + first + v * kLanes<T>, count - v * kLanes<T>) : Vec<T>{});
  }
}

// out[column, k] = rows[k][column] for columns [begin, end) of `depth` rows.
template <class T>
void transpose(const T* const* rows, int64_t depth, int64_t begin, int64_t end, T* out) {
  constexpr int64_t L = kLanes<T>;
  for (int64_t column = begin; column < end; column += L)
    for (int64_t k = 0; k < depth; k += L) {
      const int64_t columns = std::min(L, end - column), terms = std::min(L, depth - k);
      Vec<T> square[L];
      for (int64_t i = 0; i < L; ++i) square[i] = i < terms ? load(rows[k + i] + column, columns) : Vec<T>{};
      turn_over<T>(square);
      for (int64_t j = 0; j < columns; ++j) store(out + (column + j) * depth + k, square[j], terms);
    }
}

// out[r, c] = dot(row r of a, column c of the panels), or += with `adds`.
template <class T>
void product(const T* a, int64_t a_stride, int64_t rows, const T* panels, int64_t columns, int64_t depth,
             int64_t piece, bool adds, T* out, int64_t out_stride) {
  constexpr int64_t L = kLanes<T>, C = kPanelColumns<T>;
  for (int64_t begin = 0, next; begin < rows; begin = next) {
    next = begin + group_rows(rows - begin);
    const int64_t count = next - begin;
    const T* group[kGroupRows];
    for (int64_t r = 0; r < count; ++r) group[r] = a + (begin + r) * a_stride;
    for (int64_t column = 0; column < columns; column += C) {
      const int64_t vectors = panel_vectors<T>(columns - column);
      T* const to = out + begin * out_stride + column;
      alignas(64) T sum[kGroupRows * C];
      for (int64_t i = 0; i < count * C; i += L) store(sum + i, Vec<T>{});
      for (int64_t r = 0; r < count && adds; ++r)
        for (int64_t v = 0; v < vectors; ++v)
          store(sum + (4 * r + v) * L, load(to + r * out_stride + v * L, columns - column - v * L));
      multiply_panel<T>(group, count, depth, panels + column * depth, vectors, sum, piece);
      for (int64_t r = 0; r < count; ++r)
        for (int64_t v = 0; v < vectors; ++v)
          store(to + r * out_stride + v * L, load(sum + (4 * r + v) * L), columns - column - v * L);
    }
  }
}
