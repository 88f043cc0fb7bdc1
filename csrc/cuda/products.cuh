// The products of a persistent step: weights in registers and shared memory, the state in registers, partial
// sums in shared memory. csrc/README.md has the picture.
#pragma once

#include <type_traits>
#include <utility>

#include "exchange.cuh"

namespace fusedlstm::cuda {

template <class IO>
__device__ __forceinline__ void multiply_add(float (&sum)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<IO, Half>) {
    mma_half(sum, a, b);
  } else if constexpr (std::is_same_v<IO, BFloat16>) {
    mma_bfloat16(sum, a, b);
  } else {
    mma_tf32(sum, a, b);
  }
}

// A k-block of a weight tile, as one lane holds it.
struct Fragment {
  uint4 low, high;  // of rows g and g + 8
};

// The weights of a block, kKBlocks k-blocks of each weight tile for each warp: the first fragments in
// registers, the others in shared memory.
template <class Traits>
class Weights {
 public:
  __device__ __forceinline__ Weights(const void* packed, int block, int weight_tiles, void* shared)
      : weight_tiles_(weight_tiles), shared_(static_cast<uint4*>(shared) + warp_offset()) {
    const uint4* const own = static_cast<const uint4*>(packed) +
                             int64_t{block} * weight_tiles * kKBlocks * kFragmentWords + warp_offset();
#pragma unroll
    for (int i = 0; i < kInRegisters; ++i)
      registers_[i] = i < weight_tiles * kKBlocks ? fragment(own + i * kFragmentWords) : Fragment{};
    for (int i = kInRegisters; i < weight_tiles * kKBlocks; ++i) {
      const Fragment loaded = fragment(own + i * kFragmentWords);
      uint4* const to = shared_ + (i - kInRegisters) * kFragmentWords;
      to[0] = loaded.low;
      to[kLanes] = loaded.high;
    }
  }

  // Calls use(weight_tile, row_tile, sum) with the product of each weight tile and each of kRowTiles row
  // tiles over kCount k-blocks from kFirst on; state(row_tile, k_block) is what the lane has of them. Lane
  // 4g + q has the sums of row g of the weight tile with rows 2q and 2q + 1 of the row tile, then those of
  // row g + 8.
  template <int kFirst, int kCount, int kRowTiles, class State, class Use>
  __device__ __forceinline__ void multiply(const State& state, const Use& use) const {
    // Tiles with a fragment in registers.
    constexpr int kUnrolled = kInRegisters > kFirst ? (kInRegisters - kFirst + kKBlocks - 1) / kKBlocks : 0;
#pragma unroll
    for (int tile = 0; tile < kUnrolled; ++tile) {
      if (tile >= weight_tiles_) break;
      multiply_tile<kCount, kRowTiles>(tile, state, use, [&](int k_block) {
        const int i = tile * kKBlocks + kFirst + k_block;
        return i < kInRegisters ? registers_[i] : from_shared(i);
      });
    }
#pragma unroll 1
    for (int tile = kUnrolled; tile < weight_tiles_; ++tile)
      multiply_tile<kCount, kRowTiles>(
          tile, state, use, [&](int k_block) { return from_shared(tile * kKBlocks + kFirst + k_block); });
  }

  __device__ __forceinline__ int tiles() const { return weight_tiles_; }

 private:
  using IO = typename Traits::IO;
  static constexpr int kKBlocks = Traits::kKBlocks, kInRegisters = Traits::kRegisterFragments;

  // A product waits for the one before it in the same sum; with one sum that was half of a step at N 64,
  // H 1024. So there are three sums at a time, or two for each of two row tiles.
  template <int kCount, int kRowTiles, class State, class Use, class FragmentAt>
  static __device__ __forceinline__ void multiply_tile(int weight_tile, const State& state, const Use& use,
                                                       const FragmentAt& fragment_at) {
    constexpr int kSums = kRowTiles == 1 && kCount > 1 ? 3 : 2;
    float sums[kRowTiles][kSums][4] = {};
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const Fragment a = fragment_at(k);
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
        const uint4 b = state(tile, k);
        multiply_add<IO>(sums[tile][2 * k % kSums], {a.low.x, a.high.x, a.low.y, a.high.y}, {b.x, b.y});
        multiply_add<IO>(sums[tile][(2 * k + 1) % kSums], {a.low.z, a.high.z, a.low.w, a.high.w}, {b.z, b.w});
      }
    }
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
      for (int other = 1; other < kSums; ++other)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[tile][0][i] += sums[tile][other][i];
      use(weight_tile, tile, sums[tile][0]);
    }
  }

  // uint4 [weight tile][k-block][warp][low, high][lane]
  static constexpr int kFragmentWords = kPersistentWarps * 2 * kLanes;
  static __device__ __forceinline__ int warp_offset() { return warp_index() * 2 * kLanes + lane_index(); }
  static __device__ __forceinline__ Fragment fragment(const uint4* low) { return {low[0], low[kLanes]}; }
  __device__ __forceinline__ Fragment from_shared(int i) const {
    return fragment(shared_ + (i - kInRegisters) * kFragmentWords);
  }

  int weight_tiles_;
  uint4* shared_;
  Fragment registers_[kInRegisters];
};

// The partial sums of the warps for each product of a weight tile with a row tile of a chunk.
class Partials {
 public:
  __device__ __forceinline__ explicit Partials(float* memory) : memory_(memory) {}

  // Sums as Weights::multiply() gives them.
  __device__ __forceinline__ void put(int tile_product, const float (&sum)[4]) const {
    float* const to = of_lane(tile_product);
    to[0] = sum[0], to[kOddRow] = sum[1], to[kPartialFloats] = sum[2], to[kPartialFloats + kOddRow] = sum[3];
  }
  // Adds to what the same lane has put.
  __device__ __forceinline__ void add(int tile_product, const float (&sum)[4]) const {
    float* const to = of_lane(tile_product);
    to[0] += sum[0], to[kOddRow] += sum[1];
    to[kPartialFloats] += sum[2], to[kPartialFloats + kOddRow] += sum[3];
  }
  // The sum over all warps for row `row` of the row tile and row lane % 8 of a half of a weight tile. Its
  // order is fixed.
  __device__ __forceinline__ float total(int half, int row) const {
    const float* const part = memory_ + half * kPartialFloats + row % 2 * kOddRow + row / 2 * kUnitOctet +
                              lane_index() % kUnitOctet;
    const auto of = [&](int warp) { return part[warp * kWarpFloats]; };
    return ((of(0) + of(1)) + (of(2) + of(3))) + ((of(4) + of(5)) + (of(6) + of(7)));
  }

 private:
  static constexpr int kOddRow = kLanes, kWarpFloats = 2 * kLanes;
  static_assert(kPersistentWarps == 8);
  __device__ __forceinline__ float* of_lane(int tile_product) const {
    const int lane = lane_index();
    return memory_ + 2 * tile_product * kPartialFloats + warp_index() * kWarpFloats + lane % 4 * kUnitOctet +
           lane / 4;
  }

  float* memory_;
};

// The part of a state that a warp multiplies by the block's weights, in registers.
template <class Traits>
class State {
 public:
  __device__ __forceinline__ State(const Ring<Traits>& ring, const Weights<Traits>& weights,
                                   int row_tiles_per_chunk)
      : ring_(ring), weights_(weights), row_tiles_(row_tiles_per_chunk) {}

  // Loads the beginning of a chunk, which need not be published yet.
  __device__ __forceinline__ void load(int state_index, int first_tile) {
    load_tiles<0>(state_index, first_tile, row_tiles_);
  }
  // Multiplies a chunk, whose beginning load() has loaded.
  __device__ __forceinline__ void multiply(const Partials& partials, int state_index, int first_tile) {
    for (int tile = 0; tile < row_tiles_; tile += kRowTiles) {
      if constexpr (kStages == 1) {
        if (tile > 0) load_tiles<0>(state_index, first_tile + tile, row_tiles_ - tile);
        multiply_stage<0>(partials, state_index, first_tile, tile);
      } else {
        multiply_stages(std::make_integer_sequence<int, kStages>{}, partials, state_index, first_tile, tile);
      }
    }
  }

 private:
  static constexpr int kStages = Traits::kStages, kCount = Traits::kStageKBlocks,
                       kRowTiles = Traits::kRowTiles, kBuffers = kStages > 1 ? 2 : 1;

  template <int kStage>
  __device__ __forceinline__ void load_tiles(int state_index, int row_tile, int row_tiles) {
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i)
      if (i < row_tiles)
        ring_.template load<kStage * kCount>(state_index, row_tile + i, words_[kStage % kBuffers][i]);
  }
  // Each stage is loaded while the one before is multiplied, the first with the last one of the tile before.
  template <int... stage>
  __device__ __forceinline__ void multiply_stages(std::integer_sequence<int, stage...>,
                                                  const Partials& partials, int state_index, int first_tile,
                                                  int tile) {
    (
        [&] {
          constexpr int kNext = (stage + 1) % kStages;
          if (kNext > 0 || tile + 1 < row_tiles_)
            load_tiles<kNext>(state_index, first_tile + tile + (kNext == 0), 1);
          multiply_stage<stage>(partials, state_index, first_tile, tile);
        }(),
        ...);
  }
  // Multiplies row tiles from `tile` of the chunk on, two at a time.
  template <int kStage>
  __device__ __forceinline__ void multiply_stage(const Partials& partials, int state_index, int first_tile,
                                                 int tile) {
    auto& words = words_[kStage % kBuffers];
    const auto multiply = [&]<int kAtOnce>(int i) {
      const auto k_block = [&](int further, int k) -> uint4& { return words[i + further][k]; };
      ring_.template poll<kStage * kCount, kCount, kAtOnce>(state_index, first_tile + tile + i, k_block);
      weights_.template multiply<kStage * kCount, kCount, kAtOnce>(
          k_block, [&](int weight_tile, int further, const float (&sum)[4]) {
            const int tile_product = (tile + i + further) * weights_.tiles() + weight_tile;
            if constexpr (kStage == 0) {
              partials.put(tile_product, sum);
            } else {
              partials.add(tile_product, sum);
            }
          });
    };
    if constexpr (kRowTiles == 1) {
      multiply.template operator()<1>(0);
    } else {
#pragma unroll
      for (int i = 0; i < kRowTiles; i += 2) {
        if (tile + i + 1 < row_tiles_) {
          multiply.template operator()<2>(i);
        } else if (tile + i < row_tiles_) {
          multiply.template operator()<1>(i);
        }
      }
    }
  }

  const Ring<Traits>& ring_;
  const Weights<Traits>& weights_;
  int row_tiles_;
  uint4 words_[kBuffers][kRowTiles][kCount];
};

}  // namespace fusedlstm::cuda
