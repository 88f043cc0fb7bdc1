// Compile-time facts that the kernels share with the plan: types, tiles, registers, what is compiled.
#pragma once

#include <array>
#include <cstdint>

#include "../cell.h"
#include "../sizes.h"

namespace fusedlstm::cuda {

enum class Type { float32, float64, float16, bfloat16 };

// A step computes gates and cell states of 16-bit types in float32.
constexpr int64_t compute_bytes(Type type) {
  return type == Type::float64 ? 8 : 4;
}
constexpr int64_t io_bytes(Type type) {
  return type == Type::float64 ? 8 : type == Type::float32 ? 4 : 2;
}

constexpr int kLanes = 32;             // threads of a warp
constexpr int kAccessBytes = 16;       // the widest access of a thread
constexpr int kMaxRegisters = 65'536;  // of a multiprocessor

// Stepwise kernels: a thread updates as many units as fit kAccessBytes, or one. With 64 registers a thread,
// 1024 threads run on a multiprocessor.
constexpr int kStepwiseThreads = 256, kStepwiseRegisters = 64;

// Persistent kernels: a block has 8 warps and a multiprocessor to itself.
constexpr int kPersistentWarps = 8, kThreads = kPersistentWarps * kLanes;
// mma.sync multiplies 16 rows of weights with 8 columns, which are rows of the batch.
constexpr int kWeightTile = 16, kRowTile = 8;
// A k-block is 64 bytes of each row of a tile: lane 4g + q has 16 of them, the q-th of row g (and g + 8),
// and takes the operands of two products from them. The terms of a sum are therefore in another order than
// in memory, for weights and state alike.
constexpr int kKBlockBytes = 4 * kAccessBytes;
// A fragment is a k-block of a weight tile: 32 bytes, or 8 registers, of each lane.
constexpr int kFragmentBytes = kWeightTile * kKBlockBytes;
// Units form octets. Forward, the gates i, f, g, o of an octet are the rows of two weight tiles,
// and the terms of a sum are units. Backward, a weight tile is 16 units, and the terms are gates: i of the
// units of an octet, then their f, g and o.
constexpr int kUnitOctet = 8, kOctetTerms = 4 * kUnitOctet;
// A tile of cells is an octet of units x a row tile. Warp w updates row w of it, of kQuadTiles tiles, a quad,
// at once: lane 8j + u has unit u of tile j.
constexpr int kQuadTiles = kLanes / kUnitOctet;
FUSEDLSTM_HOST_DEVICE constexpr int units_of_tile(Pass pass) {
  return pass == Pass::forward ? kWeightTile / 4 : kWeightTile;
}

// The numbers of k-blocks for each warp that the persistent kernels are compiled for, in rising order.
template <Pass pass>
constexpr std::array kCompiledKBlocks{1, 2, 4, 8, 12, 16, 24, 32};
template <>
inline constexpr std::array kCompiledKBlocks<Pass::forward>{1, 2, 3, 4, 6, 8};

// A warp loads the k-blocks of a wide state in stages, each into one of two buffers while the other is
// multiplied. Those of a narrow state it loads all at once, for several row tiles. A k-block takes 4
// registers of a lane: 64 at most in two buffers, 48 in one load.
constexpr int load_stages(int k_blocks) {
  return k_blocks > 16 ? 4 : k_blocks > 8 ? 2 : 1;
}
constexpr int row_tiles_loaded(int k_blocks) {
  return k_blocks > 6 ? 1 : k_blocks > 1 ? 2 : 4;
}

// The most quads of a chunk. Beside a wide state there are registers for one.
constexpr int most_quads(Pass pass, int k_blocks) {
  return pass == Pass::backward && k_blocks > 8 ? 1 : 2;
}
constexpr int kMaxTiles = 2 * kQuadTiles;

// Fragments of weights in registers beside `k_blocks` of the state; the others are in shared memory. With one
// more, some kernel spills on some architecture.
constexpr int register_fragments_beside(Pass pass, int k_blocks) {
  if (pass == Pass::forward) return k_blocks > 6 ? 9 : k_blocks > 4 ? 8 : k_blocks > 2 ? 10 : 13;
  return k_blocks > 16 ? 8 : k_blocks > 8 ? 7 : k_blocks > 2 ? 8 : 10;
}

// How a block learns that the next state is ready.
enum class Signal {
  flag,  // each block has a flag, which it sets after it has published its part
  data,  // readers poll the data until no word of it is kEmpty
};
// With Signal::data a thread fences at the end of every kStepsPerFence-th step. A slot may then be used again
// 2 * kStepsPerFence + 3 states later (csrc/README.md); tests/test_protocol.py tries every order of stores.
constexpr int kStepsPerFence = 4;
// A power of two, so that a mask gives the slot of a state.
FUSEDLSTM_HOST_DEVICE constexpr int slot_count(Signal signal) {
  return signal == Signal::flag ? 2 : 16;
}
static_assert(slot_count(Signal::data) >= 2 * kStepsPerFence + 3);

// Partial sums of the warps for half a weight tile, 8 rows, with a row tile: float [warp][row % 2][row /
// 2][8] for the 8 rows of the row tile, and 8 floats of padding. With it, lanes 8j + u that read number u of
// four neighbouring arrays j use 32 different banks of shared memory.
constexpr int kPartialFloats = kPersistentWarps * 64 + 8;
// With Signal::data chunks take turns with two buffers of partial sums: one barrier a chunk suffices. With
// Signal::flag a chunk has two barriers, and one buffer.
FUSEDLSTM_HOST_DEVICE constexpr int partial_buffers(Signal signal) {
  return signal == Signal::flag ? 1 : 2;
}

}  // namespace fusedlstm::cuda
