// What the persistent kernels share: weights in registers and shared memory, products on the tensor cores,
// launch and dispatch. csrc/README.md has the picture.
#pragma once

#include <stdexcept>
#include <type_traits>
#include <utility>

#include "exchange.cuh"
#include "persistent.h"

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

// A value as it is published, and as weights are packed: float32 is rounded to TF32, once, because the tensor
// cores would truncate it in each product.
template <class IO>
__device__ __forceinline__ IO as_operand(float value) {
  if constexpr (sizeof(IO) == 4) {
    return round_to_tf32(value);
  } else {
    IO out;
    narrow(value, out);
    return out;
  }
}

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
  // tiles over kCount k-blocks from kFirst on, which `state` holds. Lane 4g + q has the sums of row g of the
  // weight tile with rows 2q and 2q + 1 of the row tile, then those of row g + 8.
  template <int kFirst, int kRowTiles, int kCount, class Use>
  __device__ __forceinline__ void multiply(const uint4 (&state)[kRowTiles][kCount], const Use& use) const {
    // Tiles with a fragment in registers.
    constexpr int kUnrolled = kInRegisters > kFirst ? (kInRegisters - kFirst + kKBlocks - 1) / kKBlocks : 0;
#pragma unroll
    for (int tile = 0; tile < kUnrolled; ++tile) {
      if (tile >= weight_tiles_) break;
      multiply_tile(tile, state, use, [&](int k_block) {
        const int i = tile * kKBlocks + kFirst + k_block;
        return i < kInRegisters ? registers_[i] : from_shared(i);
      });
    }
#pragma unroll 1
    for (int tile = kUnrolled; tile < weight_tiles_; ++tile)
      multiply_tile(tile, state, use,
                    [&](int k_block) { return from_shared(tile * kKBlocks + kFirst + k_block); });
  }

 private:
  using IO = typename Traits::IO;
  static constexpr int kKBlocks = Traits::kKBlocks, kInRegisters = Traits::kRegisterFragments;

  // A product waits for the one before it in the same sum; with one sum that was half of a step at N 64,
  // H 1024. So there are three sums at a time, or two for each of two row tiles.
  template <int kRowTiles, int kCount, class Use, class FragmentAt>
  static __device__ __forceinline__ void multiply_tile(int weight_tile,
                                                       const uint4 (&state)[kRowTiles][kCount],
                                                       const Use& use, const FragmentAt& fragment_at) {
    constexpr int kSums = kRowTiles == 1 && kCount > 1 ? 3 : 2;
    float sums[kRowTiles][kSums][4] = {};
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const Fragment a = fragment_at(k);
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
        const uint4& b = state[tile][k];
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

// The partial sums of the warps for each product of a weight tile with a row tile, added up in the order of
// the warps.
class Partials {
 public:
  __device__ __forceinline__ explicit Partials(float4* memory) : memory_(memory) {}

  __device__ __forceinline__ void put(int tile_product, const float (&sum)[4]) const {
    *address(tile_product, warp_index()) = float4{sum[0], sum[1], sum[2], sum[3]};
  }
  // Adds to what the same lane has put.
  __device__ __forceinline__ void add(int tile_product, const float (&sum)[4]) const {
    const int warp = warp_index();
    const float4 old = *address(tile_product, warp);
    *address(tile_product, warp) = float4{old.x + sum[0], old.y + sum[1], old.z + sum[2], old.w + sum[3]};
  }
  __device__ __forceinline__ float4 total(int tile_product) const {
    float4 sum = *address(tile_product, 0);
#pragma unroll
    for (int warp = 1; warp < kPersistentWarps; ++warp) {
      const float4 part = *address(tile_product, warp);
      sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
    }
    return sum;
  }
  // Of row g (`half` 0) or g + 8 of the weight tile alone.
  __device__ __forceinline__ float2 total(int tile_product, int half) const {
    float2 sum{0, 0};
#pragma unroll
    for (int warp = 0; warp < kPersistentWarps; ++warp) {
      const float2 part = reinterpret_cast<const float2*>(address(tile_product, warp))[half];
      sum.x += part.x, sum.y += part.y;
    }
    return sum;
  }

 private:
  __device__ __forceinline__ float4* address(int tile_product, int warp) const {
    return memory_ + (tile_product * kPersistentWarps + warp) * kLanes + thread_index() % kLanes;
  }

  float4* memory_;
};

// Launches a block on each of as many multiprocessors; false where the device does not take all at once.
template <class Args>
bool launch_persistent(const char* name, void (*kernel)(Args), const Args& args, Stream stream) {
  const Launch settings{.blocks = static_cast<unsigned>(args.plan.blocks(args.size.directions)),
                        .threads = kThreads,
                        .stream = stream,
                        .shared_memory = static_cast<std::size_t>(shared_bytes(args.plan)),
                        .cooperative = true};
  return launch_resident(name, kernel, settings, args);
}

// Calls f<PersistentTraits> for the plan.
template <class IO, Pass kPass, class F>
void with_traits(const PersistentPlan& plan, F&& f) {
  constexpr auto& compiled = kCompiledKBlocks<kPass>;
  const auto with_signal = [&]<Signal kSignal, std::size_t... i>(std::index_sequence<i...>) {
    const bool found =
        ((plan.k_blocks == compiled[i] &&
          (f.template operator()<PersistentTraits<IO, kPass, compiled[i], kSignal>>(), true)) ||
         ...);
    if (!found)
      throw std::logic_error("fusedlstm: the plan asks for a persistent kernel that is not compiled");
  };
  constexpr auto indices = std::make_index_sequence<compiled.size()>{};
  if (plan.signal == Signal::flag) {
    with_signal.template operator()<Signal::flag>(indices);
  } else {
    with_signal.template operator()<Signal::data>(indices);
  }
}

// forward_persistent and backward_persistent for one type, each compiled in a source of its own: six sources
// of ten seconds each, rather than one of a minute.
template <class IO>
bool launch_forward(const PersistentForwardArgs& args, Stream stream);
template <class IO>
bool launch_backward(const PersistentBackwardArgs& args, Stream stream);

}  // namespace fusedlstm::cuda
