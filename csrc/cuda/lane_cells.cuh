// The cells that a lane of a persistent kernel updates: where they lie in the tensors, in the exchange and in
// time. csrc/README.md has the picture.
#pragma once

#include "exchange.cuh"

namespace fusedlstm::cuda {

// A chunk of a group's rows in a step.
struct Chunk {
  int index, first_tile;  // its first row tile in the group
  int row;                // its row whose number in a row tile is the warp's, in the group
};

// Calls f with the number of each quad of a chunk.
template <class Traits, class F>
__device__ __forceinline__ void for_each_quad(const PersistentPlan& plan, const F& f) {
#pragma unroll
  for (int quad = 0; quad < Traits::kQuads; ++quad)
    if (quad == 0 || quad < plan.quads) f(quad);
}

// A lane's cell in a quad of tiles: of tile lane / 8, unit lane % 8 of octet tile % octets of the block, in
// the row of row tile tile / octets of the chunk that is the warp's number.
struct TileCell {
  int row;        // after Chunk::row
  int unit;       // of the layer
  bool in_octet;  // the layer has units in the octet, and the exchange words for it
  bool is_unit;   // the unit itself exists
};

template <class Traits>
class LaneCells {
 public:
  __device__ __forceinline__ LaneCells(const KernelSizes& size, const PersistentPlan& plan,
                                       const Slice& slice, float* states)
      : size_(size), plan_(plan), slice_(slice), states_(states) {
#pragma unroll
    for (int quad = 0; quad < Traits::kQuads; ++quad) {
      const TileCell& cell = cell_[quad] = cell_in(quad * kQuadTiles + lane_index() / kUnitOctet);
      word_[quad] = cell.in_octet
                        ? Ring<Traits>::first_word(cell.row / kRowTile, warp_index(), cell.unit / kUnitOctet)
                        : Ring<Traits>::kNoWord;
    }
  }

  __device__ __forceinline__ Chunk chunk(int index) const {
    const int first_tile = index * plan_.row_tiles_per_chunk;
    return {index, first_tile, first_tile * kRowTile + warp_index()};
  }
  // Of a chunk, whether their rows exist or not.
  __device__ __forceinline__ int tiles() const { return plan_.octets * plan_.row_tiles_per_chunk; }

  __device__ __forceinline__ int unit(int quad) const { return cell_[quad].unit; }
  __device__ __forceinline__ bool exists(const Chunk& chunk, int quad) const {
    return cell_[quad].is_unit && has_row(chunk, quad);
  }
  // Without lengths and resets each row takes part in each step.
  __device__ __forceinline__ Coordinates at(int step, const Chunk& chunk, int quad) const {
    Coordinates at{};
    if (!exists(chunk, quad)) return at;
    if (size_.lengths || size_.resets)
      return cell_at(size_, step, static_cast<unsigned>(slice_.d),
                     static_cast<unsigned>(slice_.first_row + chunk.row + cell_[quad].row),
                     static_cast<unsigned>(cell_[quad].unit));
    at.active = at.has_entry = true, at.first = step == 0, at.last = step + 1 == size_.steps;
    at.continues = !at.last;
    return at;
  }

  // Indices of a cell's row in a [D, N, H] tensor; in a [S, D, H] one, of the cells of a chunk in a step, and
  // of a cell's row after that.
  __device__ __forceinline__ int64_t state_row(const Chunk& chunk, int quad) const {
    return (slice_.d * size_.batch + slice_.first_row + chunk.row + cell_[quad].row) * size_.hidden;
  }
  __device__ __forceinline__ int64_t sequence_row(int step, const Chunk& chunk) const {
    const auto T = static_cast<int>(size_.steps), N = static_cast<int>(size_.batch);
    const int t = slice_.d ? T - 1 - step : step;
    const int64_t entry = size_.offsets ? size_.offsets[t] : int64_t{t} * N;
    return ((entry + slice_.first_row + chunk.row) * static_cast<int>(size_.directions) + slice_.d) *
           static_cast<int>(size_.hidden);
  }
  __device__ __forceinline__ int further_row(int quad) const { return further_row(cell_[quad]); }

  // Publishes the values of the cell in a state; every lane of the warp takes part.
  __device__ __forceinline__ void publish(const Ring<Traits>& ring, int state_index, const Chunk& chunk,
                                          int quad, const float (&values)[Ring<Traits>::kValues]) const {
    ring.publish(ring.words(state_index, chunk.first_tile) + word_[quad], publishes(chunk, quad), values);
  }
  // Clears what the lane published of the cell in a state.
  __device__ __forceinline__ void clear(const Ring<Traits>& ring, int state_index, const Chunk& chunk,
                                        int quad) const {
    if (publishes(chunk, quad)) ring.clear(ring.words(state_index, chunk.first_tile) + word_[quad]);
  }
  // The cell's state, which no other thread reads.
  __device__ __forceinline__ float& state(const Chunk& chunk, int quad) const {
    return states_[(chunk.index * plan_.quads + quad) * kThreads + static_cast<int>(thread_index())];
  }

  // Of tile `tile` of a chunk, rather than the lane's.
  __device__ __forceinline__ TileCell cell_in(int tile) const {
    const int octets = plan_.octets, row_tile = tile / octets, H = static_cast<int>(size_.hidden);
    const int first_unit = (slice_.member * octets + tile % octets) * kUnitOctet;
    const int unit = first_unit + lane_index() % kUnitOctet;
    const bool in_octet = row_tile < plan_.row_tiles_per_chunk && first_unit < H;
    return {row_tile * kRowTile, unit, in_octet, in_octet && unit < H};
  }
  __device__ __forceinline__ int further_row(const TileCell& cell) const {
    return cell.row * static_cast<int>(size_.directions) * static_cast<int>(size_.hidden);
  }

 private:
  __device__ __forceinline__ bool has_row(const Chunk& chunk, int quad) const {
    return chunk.row + cell_[quad].row < slice_.row_count;
  }

  __device__ __forceinline__ bool publishes(const Chunk& chunk, int quad) const {
    return word_[quad] != Ring<Traits>::kNoWord && has_row(chunk, quad);
  }

  const KernelSizes& size_;
  const PersistentPlan& plan_;
  const Slice& slice_;
  float* states_;  // [chunk][quad][thread]
  TileCell cell_[Traits::kQuads];
  int word_[Traits::kQuads];  // Ring::first_word()
};

// The blocks that publish the terms of the state which a warp multiplies.
template <class Traits>
struct Producers {
  int first, last;
  bool any;  // false for a warp whose terms are all padding

  __device__ __forceinline__ Producers(const KernelSizes& size, const PersistentPlan& plan) {
    constexpr int kTerms = kUnitOctet * Ring<Traits>::kValues;
    const int begin = warp_index() * Traits::kWarpTerms, end = begin + Traits::kWarpTerms;
    const int octets = static_cast<int>(size.hidden + kUnitOctet - 1) / kUnitOctet,
              last_octet = (end - 1) / kTerms;
    any = begin / kTerms < octets;
    first = begin / kTerms / plan.octets;
    last = (last_octet < octets ? last_octet : octets - 1) / plan.octets;
  }
};

}  // namespace fusedlstm::cuda
