// Gates from bfloat16 weights by AMX, whose instruction multiplies 16 rows of 32 terms with 16 columns. Sums
// stay float; rows are rounded to bfloat16, which the input is and nn.LSTM's states are. Included by
// forward_impl.h alone.

// Rows and panels are padded with zeros to whole tiles of terms. A panel's terms lie in pairs, 32 bits each.
constexpr int64_t kTileTerms = 32, kTileHeight = 16;
inline int64_t tile_terms(int64_t depth) {
  return (depth + kTileTerms - 1) / kTileTerms * kTileTerms;
}

// What was stored is in memory from here on: g++ does not know that tiles, and their shapes, are loaded from
// it.
inline __attribute__((always_inline)) void stores_are_done() {
  asm volatile("" ::: "memory");
}

// `count` rows are divided into so many tiles of equal height. The last ones may be of rows that do not
// exist, whose sums are nobody's.
inline int64_t row_tiles(int64_t count) {
  return (count + kTileHeight - 1) / kTileHeight;
}
inline int64_t rows_of_tile(int64_t count) {
  return (count + row_tiles(count) - 1) / row_tiles(count);
}

// Tiles 0 to 3 are for sums, 4 and 5 for rows, 6 and 7 for columns, for as long as it lives; then they are
// what they were before, which another library may rely on.
template <>
class GateTiles<float, BFloat16> {
 public:
  GateTiles(int64_t count, bool packed) : used_(packed) {
    if (!used_) return;
    _tile_storeconfig(before_);
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {};
    } config;
    for (int tile = 0; tile < 8; ++tile) config.rows[tile] = tile < 6 ? rows_of_tile(count) : kTileHeight;
    stores_are_done();
    _tile_loadconfig(&config);
  }
  ~GateTiles() {
    if (used_) _tile_loadconfig(before_);
  }
  GateTiles(const GateTiles&) = delete;

 private:
  bool used_;
  alignas(64) char before_[64];
};

template <>
void pack_gates<float, BFloat16>(const BFloat16* weight, int64_t hidden, int64_t depth, int64_t begin,
                                 int64_t end, float* packed) {
  constexpr int64_t L = kLanes<float>;
  const int64_t padded = tile_terms(depth);
  for (int64_t block = begin; block < end; ++block)
    for (int64_t gate = 0; gate < 4; ++gate) {
      const int64_t unit = block * L, units = std::min(L, hidden - unit);
      const BFloat16* const rows = weight + (gate * hidden + unit) * depth;
      float* const out = packed + block * padded / 2 * 4 * L + gate % 2 * L;
      for (int64_t k = 0; k < padded; k += kTileTerms) {
        const int64_t terms = std::clamp<int64_t>(depth - k, 0, kTileTerms);
        const __mmask32 mask = static_cast<uint32_t>((uint64_t(1) << terms) - 1);
        Vec<float> square[L];
        for (int64_t j = 0; j < L; ++j)
          square[j] =
              j < units ? (Vec<float>)_mm512_maskz_loadu_epi16(mask, rows + j * depth + k) : Vec<float>{};
        turn_over<float>(square);
        for (int64_t i = 0; i < L; ++i)
          store(out + panel_place<float>(padded / 2, gate / 2, k / 2 + i), square[i]);
      }
    }
}

// Rows are rounded anew for each part of the panels, which are half as large; these processors have 2 MiB.
template <>
inline constexpr int64_t kNearTerms<float, BFloat16> = (1 << 20) / (kPanelColumns<float> * sizeof(BFloat16));

template <>
inline int64_t gate_rows_room<float, BFloat16>(int64_t depth) {
  return kGroupRows * (tile_terms(depth) + kTileTerms) / 2;
}

template <>
class GateRows<float, BFloat16> {
 public:
  GateRows(const float* const* rows, int64_t count, int64_t depth, bool packed, float* room)
      : rows_(rows),
        count_(count),
        depth_(depth),
        // One tile further, so that rows do not lie in the same places of the L1 cache.
        stride_(tile_terms(depth) + kTileTerms),
        rounded_(reinterpret_cast<BFloat16*>(room)) {
    for (int64_t r = 0; packed && r < count; ++r) {
      int64_t k = 0;
      for (; k + kTileTerms <= depth; k += kTileTerms) round_terms(rows[r] + k, 0xffff, 0xffff, r, k);
      const uint32_t left = (uint32_t(1) << (depth - k)) - 1;
      if (k < depth) round_terms(rows[r] + k, left & 0xffff, left >> 16, r, k);
    }
  }

  void add_gates(const BFloat16* weight, const float* packed, int64_t hidden, int64_t unit,
                 float* sum) const {
    if (!packed) return add_gates_by_rows(rows_, count_, weight, hidden, depth_, unit, sum);
    const int64_t words = tile_terms(depth_) / 2, tiles = row_tiles(count_), height = rows_of_tile(count_);
    const float* const panel = packed + unit * 4 * words;
    for (int64_t tile = 0; tile < tiles; tile += 2)
      for (int64_t half = 0; half < 2; ++half)
        multiply(tile * height, height, tile + 1 < tiles, panel + panel_place<float>(words, half, 0),
                 sum + tile * height * 4 * kLanes<float> + half * 2 * kLanes<float>);
  }

 private:
  void round_terms(const float* terms, __mmask16 first, __mmask16 second, int64_t row, int64_t k) {
    const auto low = _mm512_maskz_loadu_ps(first, terms), high = _mm512_maskz_loadu_ps(second, terms + 16);
    const auto rounded = (__m512i)_mm512_cvtne2ps_pbh(high, low);
    _mm512_storeu_si512(rounded_ + row * stride_ + k, rounded);
  }

  // Two gates of one tile of rows, or of two.
  void multiply(int64_t row, int64_t height, bool two, const float* columns, float* sum) const {
    constexpr int64_t L = kLanes<float>, kRowBytes = 4 * L * sizeof(float),
                      kPairBytes = 2 * L * sizeof(float);
    const BFloat16* const rows = rounded_ + row * stride_;
    const BFloat16* const more = rows + height * stride_;
    float* const further = sum + height * 4 * L;
    const int64_t row_bytes = stride_ * sizeof(BFloat16);
    stores_are_done();
    _tile_loadd(0, sum, kRowBytes);
    _tile_loadd(1, sum + L, kRowBytes);
    if (two) {
      _tile_loadd(2, further, kRowBytes);
      _tile_loadd(3, further + L, kRowBytes);
    }
    for (int64_t k = 0; k < depth_; k += kTileTerms, columns += kTileTerms * L) {
      _tile_loadd(4, rows + k, row_bytes);
      _tile_loadd(6, columns, kPairBytes);
      _tile_loadd(7, columns + L, kPairBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if (two) {
        _tile_loadd(5, more + k, row_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, sum, kRowBytes);
    _tile_stored(1, sum + L, kRowBytes);
    if (two) {
      _tile_stored(2, further, kRowBytes);
      _tile_stored(3, further + L, kRowBytes);
    }
  }

  const float* const* rows_;
  int64_t count_, depth_, stride_;
  BFloat16* rounded_;
};
