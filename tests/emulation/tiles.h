// The tile instructions of AMX for bfloat16, as Intel's manual describes them, for processors without them. A
// build that names this header in FUSEDLSTM_EMULATED_TILES gets them in place of the compiler's intrinsics.
#pragma once

#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace fusedlstm::emulated_tiles {

// What _tile_loadconfig reads.
struct Config {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(Config) == 64);

inline thread_local Config config{};
inline thread_local float tiles[8][16][16];
inline std::atomic<uint64_t> products = 0;

// Where the processor would raise an exception.
inline void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "emulated tiles: %s\n", what);
  std::abort();
}

inline void load_config(const void* from) {
  std::memcpy(&config, from, sizeof config);
  std::memset(tiles, 0, sizeof tiles);
  if (config.palette == 0) {  // the state before any configuration
    config = {};
    return;
  }
  require(config.palette == 1 && config.start_row == 0, "palette must be 1, and start_row 0");
  for (int tile = 0; tile < 8; ++tile)
    require(config.rows[tile] <= 16 && config.row_bytes[tile] <= 64, "a tile has 16 rows of 64 bytes");
}

inline void store_config(void* to) {
  std::memcpy(to, &config, sizeof config);
}

inline void require_configured(int tile) {
  require(config.palette == 1 && config.rows[tile] > 0 && config.row_bytes[tile] > 0,
          "a tile is used that is not configured");
}

inline void clear(int tile) {
  require_configured(tile);
  std::memset(tiles[tile], 0, sizeof tiles[tile]);
}

inline void load(int tile, const void* from, int64_t stride) {
  require_configured(tile);
  std::memset(tiles[tile], 0, sizeof tiles[tile]);
  for (int row = 0; row < config.rows[tile]; ++row)
    std::memcpy(tiles[tile][row], static_cast<const char*>(from) + row * stride, config.row_bytes[tile]);
}

inline void store(int tile, void* to, int64_t stride) {
  require_configured(tile);
  for (int row = 0; row < config.rows[tile]; ++row)
    std::memcpy(static_cast<char*>(to) + row * stride, tiles[tile][row], config.row_bytes[tile]);
}

// Denormal numbers are zero, in operands and in results.
inline float flushed(float value) {
  return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value;
}
inline float widened(float pair, int half) {
  const auto bits = std::bit_cast<uint32_t>(pair);
  return flushed(std::bit_cast<float>(half ? bits & 0xffff0000 : bits << 16));
}

// sum [m, n] += a [m, k] times b [k, n], of pairs. Their first and their second halves are added up apart.
inline void multiply(int sum, int a, int b) {
  for (const int tile : {sum, a, b}) require_configured(tile);
  ++products;
  const int rows = config.rows[sum], pairs = config.row_bytes[a] / 4, columns = config.row_bytes[sum] / 4;
  require(config.rows[a] == rows && config.rows[b] == pairs && config.row_bytes[b] / 4 == columns,
          "sizes of the tiles do not fit each other");
  for (int m = 0; m < rows; ++m)
    for (int n = 0; n < columns; ++n) {
      float part[2] = {};
      for (int k = 0; k < pairs; ++k)
        for (int half = 0; half < 2; ++half)
          part[half] =
              flushed(std::fma(widened(tiles[a][m][k], half), widened(tiles[b][k][n], half), part[half]));
      tiles[sum][m][n] = flushed(flushed(tiles[sum][m][n]) + flushed(part[0] + part[1]));
    }
}

// Products of tiles so far, for tests.
extern "C" [[gnu::used, gnu::visibility("default")]] inline uint64_t fusedlstm_tile_products() {
  return products;
}

}  // namespace fusedlstm::emulated_tiles

#undef _tile_loadconfig
#undef _tile_storeconfig
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig fusedlstm::emulated_tiles::load_config
#define _tile_storeconfig fusedlstm::emulated_tiles::store_config
#define _tile_zero fusedlstm::emulated_tiles::clear
#define _tile_loadd fusedlstm::emulated_tiles::load
#define _tile_stored fusedlstm::emulated_tiles::store
#define _tile_dpbf16ps fusedlstm::emulated_tiles::multiply
