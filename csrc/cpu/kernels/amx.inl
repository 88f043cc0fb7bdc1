// The policy for bfloat16 weights on AMX (forward.inl has the other). An instruction multiplies 16 rows, 32
// deep, with 16 columns. Sums are float. Rows of x are bfloat16 already, and rows of h are rounded to it, as
// nn.LSTM rounds its states. Included by amx.cpp alone.

#include "avx512.inl"

// Depth and rows of a tile. Depth is padded with zeros to whole tiles.
constexpr int64_t kTileDepth = 32, kTileRows = 16;
inline int64_t padded_depth(int64_t depth) {
  return (depth + kTileDepth - 1) / kTileDepth * kTileDepth;
}

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

struct AmxGateGemm {
  // Panels of 1 MiB: rows are rounded anew for each NC of the panels, and processors with AMX have 2 MiB.
  static constexpr int64_t kCachedDepth = (1 << 20) / (kNR<float> * sizeof(BFloat16));

  // One tile more than the row's depth, so that rows do not map to the same sets of the L1 cache.
  static int64_t row_stride(int64_t depth) { return padded_depth(depth) + kTileDepth; }
  // Row blocks of bfloat16, counted in floats.
  static int64_t workspace(int64_t depth) { return kMC * row_stride(depth) / 2; }

  // A panel as in VectorGateGemm, with a pair of bfloat16 in place of each float: depth k and k + 1.
  static void pack(const BFloat16* weight, int64_t hidden, int64_t depth, Range panels, float* packed) {
    constexpr int64_t L = kLanes<float>;
    const int64_t padded = padded_depth(depth);
    for (int64_t panel = panels.begin; panel < panels.end; ++panel)
      for (int64_t gate = 0; gate < 4; ++gate) {
        const int64_t unit = panel * L, units = std::min(L, hidden - unit);
        const BFloat16* const rows = weight + (gate * hidden + unit) * depth;
        float* const out = packed + panel * padded / 2 * 4 * L + gate % 2 * L;
        for (int64_t k = 0; k < padded; k += kTileDepth) {
          const int64_t count = std::clamp<int64_t>(depth - k, 0, kTileDepth);
          const __mmask32 mask = static_cast<uint32_t>((uint64_t(1) << count) - 1);
          Vec<float> square[L];
          for (int64_t j = 0; j < L; ++j)
            square[j] =
                j < units ? (Vec<float>)_mm512_maskz_loadu_epi16(mask, rows + j * depth + k) : Vec<float>{};
          transpose_square<float>(square);
          for (int64_t i = 0; i < L; ++i)
            store(out + panel_offset<float>(padded / 2, gate / 2, k / 2 + i), square[i]);
        }
      }
  }

  // Configures tiles 0 to 3 for sums, 4 and 5 for rows, 6 and 7 for columns. The destructor restores the
  // configuration that was there before, which another library may rely on.
  class Setup {
   public:
    Setup(int64_t count, bool packed) : used_(packed) {
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

  class RowBlock : VectorGateGemm<float, BFloat16>::RowBlock {
   public:
    RowBlock(const float* const* rows, int64_t count, int64_t depth, bool packed, float* workspace)
        : VectorGateGemm<float, BFloat16>::RowBlock(rows, count, depth, packed, workspace),
          stride_(row_stride(depth)),
          rounded_(reinterpret_cast<BFloat16*>(workspace)) {
      for (int64_t r = 0; packed && r < count; ++r) {
        int64_t k = 0;
        for (; k + kTileDepth <= depth; k += kTileDepth) round(rows[r] + k, 0xffff, 0xffff, r, k);
        const uint32_t left = (uint32_t(1) << (depth - k)) - 1;
        if (k < depth) round(rows[r] + k, left & 0xffff, left >> 16, r, k);
      }
    }

    void add_gates(const BFloat16* weight, const float* packed, int64_t hidden, int64_t unit,
                   float* sum) const {
      if (!packed) return add_unpacked(weight, hidden, unit, sum);
      const int64_t pairs = padded_depth(depth_) / 2, tiles = row_tiles(count_),
                    height = rows_of_tile(count_);
      const float* const panel = packed + unit * 4 * pairs;
      for (int64_t tile = 0; tile < tiles; tile += 2)
        for (int64_t half = 0; half < 2; ++half)
          multiply(tile * height, height, tile + 1 < tiles, panel + panel_offset<float>(pairs, half, 0),
                   sum + tile * height * 4 * kLanes<float> + half * 2 * kLanes<float>);
    }

   private:
    // Rounds up to 32 values; the masks select among the first and the second 16.
    void round(const float* values, __mmask16 first, __mmask16 second, int64_t row, int64_t k) {
      const auto low = _mm512_maskz_loadu_ps(first, values),
                 high = _mm512_maskz_loadu_ps(second, values + 16);
      const auto rounded = (__m512i)_mm512_cvtne2ps_pbh(high, low);
      _mm512_storeu_si512(rounded_ + row * stride_ + k, rounded);
    }

    // Half a panel, two gates, for one tile of rows or for two.
    void multiply(int64_t row, int64_t height, bool two, const float* columns, float* sum) const {
      constexpr int64_t L = kLanes<float>, kSumStride = 4 * L * sizeof(float),
                        kColumnStride = 2 * L * sizeof(float);  // in bytes
      const BFloat16* const rows = rounded_ + row * stride_;
      const BFloat16* const more_rows = rows + height * stride_;
      float* const more_sums = sum + height * 4 * L;
      const int64_t row_stride = stride_ * sizeof(BFloat16);
      compiler_barrier();
      _tile_loadd(0, sum, kSumStride);
      _tile_loadd(1, sum + L, kSumStride);
      if (two) {
        _tile_loadd(2, more_sums, kSumStride);
        _tile_loadd(3, more_sums + L, kSumStride);
      }
      for (int64_t k = 0; k < depth_; k += kTileDepth, columns += kTileDepth * L) {
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

    int64_t stride_;
    BFloat16* rounded_;
  };
};
