// Panels of pairs of bfloat16 on AMX: an instruction multiplies 16 rows, 32 deep, with 16 columns. Included
// by amx.cpp alone, in an anonymous namespace.

#include "pairs.inl"

// Depth and rows of a tile.
constexpr int64_t kTileDepth = 32, kTileRows = 16;

// Rows of a row block are divided into so many tiles of equal height. The last tile may have rows beyond
// `count`; their sums are never read.
inline int64_t row_tiles(int64_t count) {
  return (count + kTileRows - 1) / kTileRows;
}
inline int64_t rows_of_tile(int64_t count) {
  return (count + row_tiles(count) - 1) / row_tiles(count);
}

// g++ does not know that tiles and their configuration are loaded from memory: this keeps stores before it.
inline __attribute__((always_inline)) void compiler_barrier() {
  asm volatile("" ::: "memory");
}

// Rows that are multiplied with unpacked weights: a tile of weights, as they are stored, by one of rows,
// which are transposed to pairs. The sums of a tile are [16 units, 16 rows].
class TileDots : PairLayout<kTileDepth> {
 public:
  static constexpr int64_t kSetupRows = kTileRows;

  TileDots(const BFloat16* const* rows, int64_t count, int64_t depth, float* workspace)
      : rows_(workspace), count_(count), depth_(depth) {
    for (int64_t first = 0; first < count; first += kTileRows)
      for (int64_t k = 0; k < packed_depth(depth); k += L, workspace += kTileRows * L) {
        Vec<float> square[L];
        for (int64_t r = 0; r < L; ++r)
          square[r] = first + r < count ? load_along(rows[first + r], k, depth) : Vec<float>{};
        transpose_square<float>(square);
        for (int64_t i = 0; i < L; ++i) store(workspace + i * L, square[i]);
      }
  }

  // As that of DotRows.
  void multiply(const BFloat16* weight, int64_t gate_stride, int64_t units, float* sum) const {
    const float* rows = rows_;
    for (int64_t first = 0; first < count_; first += kTileRows) {
      alignas(64) float of_tiles[4][kTileRows * L];
      multiply_tile(weight, gate_stride, units, rows, of_tiles);
      rows += kTileRows * packed_depth(depth_);
      for (int64_t gate = 0; gate < 4; ++gate) {
        Vec<float> square[L];
        for (int64_t i = 0; i < L; ++i) square[i] = load(of_tiles[gate] + i * L);
        transpose_square<float>(square);
        for (int64_t r = 0; r < std::min(kTileRows, count_ - first); ++r) {
          float* const at = sum + (first + r) * kNR<float> + gate * L;
          store(at, load(at) + square[r]);
        }
      }
    }
  }

 private:
  static constexpr int64_t L = kLanes<float>, kStride = L * sizeof(float);

  // A tile of weights; one that the weight does not fill is copied, with zeros in place of what follows it.
  class Weights {
   public:
    Weights(const BFloat16* weight, int64_t units, int64_t k, int64_t depth)
        : at_(weight + 2 * k), stride_(depth * sizeof(BFloat16)) {
      if (units == kTileRows && 2 * (k + L) <= depth) return;
      for (int64_t j = 0; j < kTileRows; ++j)
        store(copy_ + j * L, j < units ? load_along(weight + j * depth, k, depth) : Vec<float>{});
      at_ = copy_, stride_ = kStride;
    }
    Weights(const Weights&) = delete;

    const void* at() const { return at_; }
    int64_t stride() const { return stride_; }

   private:
    const void* at_;
    int64_t stride_;
    alignas(64) float copy_[kTileRows * L];
  };

  void multiply_tile(const BFloat16* weight, int64_t gate_stride, int64_t units, const float* rows,
                     float (*sums)[kTileRows * L]) const {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < packed_depth(depth_); k += L, rows += kTileRows * L) {
      const Weights i(weight, units, k, depth_), f(weight + gate_stride, units, k, depth_),
          g(weight + 2 * gate_stride, units, k, depth_), o(weight + 3 * gate_stride, units, k, depth_);
      compiler_barrier();
      _tile_loadd(6, rows, kStride);
      _tile_loadd(4, i.at(), i.stride());
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, f.at(), f.stride());
      _tile_dpbf16ps(1, 5, 6);
      _tile_loadd(4, g.at(), g.stride());
      _tile_dpbf16ps(2, 4, 6);
      _tile_loadd(5, o.at(), o.stride());
      _tile_dpbf16ps(3, 5, 6);
    }
    _tile_stored(0, sums[0], kStride);
    _tile_stored(1, sums[1], kStride);
    _tile_stored(2, sums[2], kStride);
    _tile_stored(3, sums[3], kStride);
    compiler_barrier();
  }

  const float* rows_;
  int64_t count_, depth_;
};

struct TilePanels : PairLayout<kTileDepth> {
  using Unpacked = TileDots;
  // Forward even for one row, since a panel is read in the order of memory.
  static constexpr PackedFrom kPackedFrom = {.rows = 1, .entries = 8};

  // Configures tiles 0 to 3 for sums, 4 and 5 for rows, 6 and 7 for columns. The destructor restores the
  // configuration that was there before, which another library may rely on.
  class Setup {
   public:
    explicit Setup(int64_t count) : used_(count > 0) {
      if (!used_) return;
      _tile_storeconfig(before_);
      struct alignas(64) {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {};
      } config;
      for (int tile = 0; tile < 8; ++tile) config.rows[tile] = tile < 6 ? rows_of_tile(count) : kTileRows;
      compiler_barrier();
      _tile_loadconfig(&config);
    }
    ~Setup() {
      if (used_) _tile_loadconfig(before_);
    }
    Setup(const Setup&) = delete;

   private:
    bool used_;
    alignas(64) char before_[64];
  };

  class RowBlock {
   public:
    RowBlock(const BFloat16* const* rows, int64_t count, int64_t depth, float* workspace)
        : rows_(workspace), count_(count), stride_(row_stride(depth)), packed_depth_(packed_depth(depth)) {
      copy(rows, count, depth, workspace);
    }

    // Sums stay in the tiles for the whole depth.
    void multiply(const float* panel, int64_t vectors, float* sum, int64_t /*kc*/ = kKC) const {
      if (count_ == 0) return;
      const int64_t tiles = row_tiles(count_), height = rows_of_tile(count_);
      for (int64_t tile = 0; tile < tiles; tile += 2)
        for (int64_t half = 0; 2 * half < vectors; ++half)
          multiply_half(tile * height, height, tile + 1 < tiles,
                        panel + panel_offset<float>(packed_depth_, half, 0),
                        sum + tile * height * kNR<float> + half * 2 * kLanes<float>);
    }

   private:
    // Two vectors of columns, for one tile of rows or for two.
    void multiply_half(int64_t row, int64_t height, bool two, const float* columns, float* sum) const {
      constexpr int64_t L = kLanes<float>, kSumStride = kNR<float> * sizeof(float),
                        kColumnStride = 2 * L * sizeof(float);  // in bytes
      const float* const rows = rows_ + row * stride_;
      const float* const more_rows = rows + height * stride_;
      float* const more_sums = sum + height * kNR<float>;
      const int64_t row_stride = stride_ * sizeof(float);
      compiler_barrier();
      _tile_loadd(0, sum, kSumStride);
      _tile_loadd(1, sum + L, kSumStride);
      if (two) {
        _tile_loadd(2, more_sums, kSumStride);
        _tile_loadd(3, more_sums + L, kSumStride);
      }
      for (int64_t k = 0; k < packed_depth_; k += L, columns += L * 2 * L) {
        _tile_loadd(4, rows + k, row_stride);
        _tile_loadd(6, columns, kColumnStride);
        _tile_loadd(7, columns + L, kColumnStride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (two) {
          _tile_loadd(5, more_rows + k, row_stride);
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
      }
      _tile_stored(0, sum, kSumStride);
      _tile_stored(1, sum + L, kSumStride);
      if (two) {
        _tile_stored(2, more_sums, kSumStride);
        _tile_stored(3, more_sums + L, kSumStride);
      }
    }

    const float* rows_;
    int64_t count_, stride_, packed_depth_;
  };
};
