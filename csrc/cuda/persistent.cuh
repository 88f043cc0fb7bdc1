// What the persistent kernels share: weights in registers and shared memory, products on the tensor cores.
// csrc/README.md has the picture.
#pragma once

#include <stdexcept>
#include <type_traits>

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

// 16 rows by 64 bytes of the weights, as one lane holds them.
struct Fragment {
  uint4 low, high;  // of rows g and g + 8
};

// Values as they are told to other blocks: float32 as TF32, rounded once here and not cut at each product.
template <class IO>
__device__ __forceinline__ IO told(float value) {
  if constexpr (sizeof(IO) == 4) {
    return round_to_tf32(value);
  } else {
    IO out;
    narrow(value, out);
    return out;
  }
}

template <Pass pass, int kPieces>
constexpr int kHeldFragments = register_fragments(pass, kPieces);

// The weights of a block, kPieces pieces of each row for each warp: the first fragments in registers, the
// rest in shared memory.
template <class IO, int kPieces, int kHeld>
class Weights {
 public:
  __device__ __forceinline__ Weights(const void* packed, int block, int tiles, void* rest)
      : tiles_(tiles), rest_(static_cast<uint4*>(rest) + warp_offset()) {
    const uint4* const own =
        static_cast<const uint4*>(packed) + int64_t{block} * tiles * kPieces * kFragmentWords + warp_offset();
#pragma unroll
    for (int i = 0; i < kHeld; ++i)
      held_[i] = i < tiles * kPieces ? fragment(own + i * kFragmentWords) : Fragment{};
    for (int i = kHeld; i < tiles * kPieces; ++i) {
      const Fragment loaded = fragment(own + i * kFragmentWords);
      uint4* const to = rest_ + (i - kHeld) * kFragmentWords;
      to[0] = loaded.low;
      to[kLanes] = loaded.high;
    }
  }

  // Calls use(tile, part, sum) with each tile's product with kParts times 8 rows of the state, of which a
  // lane holds kCount pieces from number kFirst on. It has the sums of row g of the tile with columns 2q and
  // 2q + 1, then of row g + 8.
  template <int kFirst, int kParts, int kCount, class Use>
  __device__ __forceinline__ void multiply(const uint4 (&state)[kParts][kCount], const Use& use) const {
    // Tiles with a fragment in registers.
    constexpr int kUnrolled = kHeld > kFirst ? (kHeld - kFirst + kPieces - 1) / kPieces : 0;
#pragma unroll
    for (int tile = 0; tile < kUnrolled; ++tile) {
      if (tile >= tiles_) break;
      multiply_tile(tile, state, use, [&](int piece) {
        const int i = tile * kPieces + kFirst + piece;
        return i < kHeld ? held_[i] : kept(i);
      });
    }
#pragma unroll 1
    for (int tile = kUnrolled; tile < tiles_; ++tile)
      multiply_tile(tile, state, use, [&](int piece) { return kept(tile * kPieces + kFirst + piece); });
  }

 private:
  // A product waits for the one before it in the same sum, in which half of a step went by at N 64, H 1024:
  // so there are three sums at a time, or two for each of two parts.
  template <int kParts, int kCount, class Use, class FragmentAt>
  static __device__ __forceinline__ void multiply_tile(int tile, const uint4 (&state)[kParts][kCount],
                                                       const Use& use, const FragmentAt& fragment_at) {
    constexpr int kSums = kParts == 1 && kCount > 1 ? 3 : 2;
    float sums[kParts][kSums][4] = {};
#pragma unroll
    for (int piece = 0; piece < kCount; ++piece) {
      const Fragment a = fragment_at(piece);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const uint4& b = state[part][piece];
        multiply_add<IO>(sums[part][2 * piece % kSums], {a.low.x, a.high.x, a.low.y, a.high.y}, {b.x, b.y});
        multiply_add<IO>(sums[part][(2 * piece + 1) % kSums], {a.low.z, a.high.z, a.low.w, a.high.w},
                         {b.z, b.w});
      }
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int other = 1; other < kSums; ++other)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[part][0][i] += sums[part][other][i];
      use(tile, part, sums[part][0]);
    }
  }

  // [tile][piece][warp][low, high][lane]
  static constexpr int kFragmentWords = kPersistentWarps * 2 * kLanes;
  static __device__ __forceinline__ int warp_offset() {
    return static_cast<int>(thread_index()) / kLanes * 2 * kLanes + static_cast<int>(thread_index()) % kLanes;
  }
  static __device__ __forceinline__ Fragment fragment(const uint4* place) {
    return {place[0], place[kLanes]};
  }
  __device__ __forceinline__ Fragment kept(int i) const {
    return fragment(rest_ + (i - kHeld) * kFragmentWords);
  }

  int tiles_;
  uint4* rest_;
  Fragment held_[kHeld];
};

// The warps' sums of one tile of weights and one of the batch, added up in the order of the warps.
class Partials {
 public:
  __device__ __forceinline__ explicit Partials(float4* memory) : memory_(memory) {}

  __device__ __forceinline__ void put(int item, const float (&sum)[4]) const {
    const int warp = static_cast<int>(thread_index()) / kLanes;
    *place(item, warp) = float4{sum[0], sum[1], sum[2], sum[3]};
  }
  // To what the same lane has put there.
  __device__ __forceinline__ void add(int item, const float (&sum)[4]) const {
    const int warp = static_cast<int>(thread_index()) / kLanes;
    const float4 old = *place(item, warp);
    *place(item, warp) = float4{old.x + sum[0], old.y + sum[1], old.z + sum[2], old.w + sum[3]};
  }
  __device__ __forceinline__ float4 total(int item) const {
    float4 sum = *place(item, 0);
#pragma unroll
    for (int warp = 1; warp < kPersistentWarps; ++warp) {
      const float4 part = *place(item, warp);
      sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
    }
    return sum;
  }
  // Of row g (`half` 0) or g + 8 alone.
  __device__ __forceinline__ float2 total(int item, int half) const {
    float2 sum{0, 0};
#pragma unroll
    for (int warp = 0; warp < kPersistentWarps; ++warp) {
      const float2 part = reinterpret_cast<const float2*>(place(item, warp))[half];
      sum.x += part.x, sum.y += part.y;
    }
    return sum;
  }

 private:
  __device__ __forceinline__ float4* place(int item, int warp) const {
    return memory_ + (item * kPersistentWarps + warp) * kLanes + thread_index() % kLanes;
  }

  float4* memory_;
};

// Whether the device takes all blocks at once and so the launch.
template <class Args>
bool launch_whole(const char* name, void (*kernel)(Args), const Args& args, Stream stream) {
  const Launch settings{.blocks = static_cast<unsigned>(args.plan.blocks(args.size.directions)),
                        .threads = kThreads,
                        .stream = stream,
                        .shared_memory = static_cast<std::size_t>(shared_bytes(args.plan)),
                        .cooperative = true};
  if (!fits(kernel, settings)) return false;
  launch(name, kernel, settings, args);
  return true;
}

// Calls f<IO, kPieces, signal> for the type and what the plan says; its pieces are one of `kPieces...`.
template <int... kPieces, class F>
void with_kernel(Type io, const Persistent& plan, F&& f) {
  const auto of_signal = [&]<class IO, Signal signal>() {
    const bool found =
        ((plan.pieces == kPieces && (f.template operator()<IO, kPieces, signal>(), true)) || ...);
    if (!found) throw std::logic_error("fusedlstm: the plan asks for a persistent kernel that is not there");
  };
  const auto of_type = [&]<class IO>() {
    if (plan.signal == Signal::flag) {
      of_signal.template operator()<IO, Signal::flag>();
    } else {
      of_signal.template operator()<IO, Signal::data>();
    }
  };
  switch (io) {
    case Type::float32:
      return of_type.template operator()<float>();
    case Type::float16:
      return of_type.template operator()<Half>();
    case Type::bfloat16:
      return of_type.template operator()<BFloat16>();
    case Type::float64:
      throw std::logic_error("fusedlstm: there is no persistent kernel for float64");
  }
}

}  // namespace fusedlstm::cuda
