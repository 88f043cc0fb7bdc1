// Before a persistent launch: W_hh is packed in the order in which the lanes hold it, so that the lanes of a
// warp read consecutive 16 bytes each, and the exchange is made empty.
#include "cells.cuh"
#include "persistent.h"

namespace fusedlstm::cuda {
namespace {

// Kernels

// A weight as it is packed: float32 is rounded to TF32, once, because the tensor cores would truncate it in
// each product.
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

// The element of a direction's W_hh [4H, H] in row `row` of the weight tiles of block `member`, for term
// `term` of the sums.
template <Pass pass, class IO>
__device__ __forceinline__ IO element(const PersistentPlan& plan, int64_t H, const IO* weight_hh, int member,
                                      int row, int term) {
  int gate, from, to;
  if constexpr (pass == Pass::forward) {
    gate = row / kUnitOctet % 4;
    to = (member * plan.weight_tiles / 2 + row / kOctetTerms) * kUnitOctet + row % kUnitOctet;
    from = term;
  } else {
    gate = term / kUnitOctet % 4;
    to = term / kOctetTerms * kUnitOctet + term % kUnitOctet;
    from = member * plan.weight_tiles * kWeightTile + row;
  }
  return to < H && from < H ? as_operand<IO>(widen(weight_hh[(gate * H + to) * H + from])) : IO{};
}

template <class IO, Pass pass>
__global__ void pack_weights_kernel(const KernelSizes size, const PersistentPlan plan, const IO* weight_hh,
                                    uint4* packed) {
  const int64_t H = size.hidden, per_block = int64_t{plan.weight_tiles} * plan.k_blocks * 2 * kThreads;
  const int64_t count = size.directions * plan.members * per_block,
                stride = int64_t{grid_size()} * block_size();
  for (int64_t i = int64_t{block_index()} * block_size() + thread_index(); i < count; i += stride) {
    const auto lane = static_cast<int>(i % kLanes), half = static_cast<int>(i / kLanes % 2);
    const auto warp = static_cast<int>(i / (2 * kLanes) % kPersistentWarps);
    const auto fragment = static_cast<int>(i % per_block / (2 * kThreads));
    const int tile = fragment / plan.k_blocks, k_block = warp * plan.k_blocks + fragment % plan.k_blocks;
    const auto member = static_cast<int>(i / per_block % plan.members);
    const int64_t d = i / per_block / plan.members;
    constexpr int kLaneTerms = kAccessBytes / sizeof(IO);
    union {
      IO elements[kLaneTerms];
      uint4 words;
    } values;
    for (int j = 0; j < kLaneTerms; ++j)
      values.elements[j] = element<pass>(plan, H, weight_hh + d * 4 * H * H, member,
                                         tile * kWeightTile + half * kWeightTile / 2 + lane / 4,
                                         (k_block * 4 + lane % 4) * kLaneTerms + j);
    packed[i] = values.words;
  }
}

// Sets the words that will be published to `empty`. Those of padding, of terms and of rows, are zero, and so
// are the flags.
__global__ void clear_exchange_kernel(const KernelSizes size, const PersistentPlan plan, uint32_t* memory,
                                      int64_t words, int64_t slot_words, int published_words,
                                      uint32_t empty) {
  constexpr int kRowWords = kKBlockBytes / 4, kTileWords = kRowTile * kRowWords;
  const unsigned row_k_blocks = plan.k_blocks * kPersistentWarps, row_tiles = plan.rows / kRowTile;
  const int64_t stride = int64_t{grid_size()} * block_size();
  for (int64_t i = int64_t{block_index()} * block_size() + thread_index(); i < words; i += stride) {
    const auto word = static_cast<int>(i % kRowWords), row = static_cast<int>(i / kRowWords % kRowTile);
    // [direction][group][slot][row tile][k-block], in 32 bits: a 64-bit division is a routine in software.
    const auto tile = static_cast<unsigned>(i / kTileWords);
    const unsigned k_block = tile % row_k_blocks, row_tile = tile / row_k_blocks % row_tiles;
    const unsigned group = tile / (row_k_blocks * row_tiles * slot_count(plan.signal)) % plan.groups;
    const bool has_row = group * plan.rows + row_tile * kRowTile + row < size.batch;
    const bool has_term = static_cast<int>(k_block) * kRowWords + word < published_words;
    memory[i] = i < slot_words && has_term && has_row ? empty : 0;
  }
}

}  // namespace

// Launch and dispatch

void pack_weights(const KernelSizes& size, const PersistentPlan& plan, const void* weight_hh, void* packed,
                  Type io, Stream stream) {
  with_type(io, [&]<class IO>(IO) {
    const Launch settings = launch_strided(packed_bytes(size, plan) / kAccessBytes, stream);
    const auto* const from = static_cast<const IO*>(weight_hh);
    auto* const to = static_cast<uint4*>(packed);
    if (plan.pass == Pass::forward) {
      launch("pack_weights", &pack_weights_kernel<IO, Pass::forward>, settings, size, plan, from, to);
    } else {
      launch("pack_weights", &pack_weights_kernel<IO, Pass::backward>, settings, size, plan, from, to);
    }
  });
}

Exchange clear_exchange(const KernelSizes& size, const PersistentPlan& plan, uint32_t* memory, Type io,
                        Stream stream) {
  const int64_t slots = slot_words(size, plan), words = slots + flag_words(size, plan);
  const int64_t octets = ceil_div(size.hidden, kUnitOctet);
  const int64_t published =
      octets * (plan.pass == Pass::forward ? kUnitOctet : kOctetTerms) * io_bytes(io) / 4;
  launch("clear_exchange", &clear_exchange_kernel, launch_strided(words, stream), size, plan, memory, words,
         slots, static_cast<int>(published), plan.signal == Signal::data ? kEmpty : 0u);
  return {memory, memory + slots};
}

}  // namespace fusedlstm::cuda
