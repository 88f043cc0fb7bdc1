// W_hh in the order in which the lanes of the persistent kernels hold it: each reads whole 16-byte pieces,
// and reads what other lanes need beside it.
#include "persistent.cuh"
#include "persistent.h"

namespace fusedlstm::cuda {
namespace {

// The element of a direction's W_hh [4H, H] in row `row` of block `member`'s tiles that meets term `term` of
// a sum.
template <Pass pass, class IO>
__device__ __forceinline__ IO element(const Persistent& plan, int64_t H, const IO* weight_hh, int member,
                                      int row, int term) {
  int gate, from, to;
  if constexpr (pass == Pass::forward) {
    gate = row / kOctet % 4;
    to = (member * plan.tiles / 2 + row / kOctetTerms) * kOctet + row % kOctet;
    from = term;
  } else {
    gate = term / kOctet % 4;
    to = term / kOctetTerms * kOctet + term % kOctet;
    from = member * plan.tiles * 16 + row;
  }
  return to < H && from < H ? told<IO>(widen(weight_hh[(gate * H + to) * H + from])) : IO{};
}

template <class IO, Pass pass>
__global__ void pack_weights_kernel(const Sizes size, const Persistent plan, const IO* weight_hh,
                                    uint4* packed) {
  const int64_t H = size.hidden, per_block = int64_t{plan.tiles} * plan.pieces * 2 * kThreads;
  const int64_t count = size.directions * plan.members * per_block,
                stride = int64_t{grid_size()} * block_size();
  for (int64_t i = int64_t{block_index()} * block_size() + thread_index(); i < count; i += stride) {
    const auto lane = static_cast<int>(i % kLanes), half = static_cast<int>(i / kLanes % 2);
    const auto warp = static_cast<int>(i / (2 * kLanes) % kPersistentWarps);
    const auto fragment = static_cast<int>(i % per_block / (2 * kThreads));
    const int tile = fragment / plan.pieces, piece = warp * plan.pieces + fragment % plan.pieces;
    const auto member = static_cast<int>(i / per_block % plan.members);
    const int64_t d = i / per_block / plan.members;
    union {
      IO elements[kPieceTerms<IO>];
      uint4 words;
    } values;
    for (int j = 0; j < kPieceTerms<IO>; ++j)
      values.elements[j] =
          element<pass>(plan, H, weight_hh + d * 4 * H * H, member, tile * 16 + half * 8 + lane / 4,
                        (piece * 4 + lane % 4) * kPieceTerms<IO> + j);
    packed[i] = values.words;
  }
}

// Terms that no block tells are zero from the start, so that nobody waits for them.
__global__ void clear_exchange_kernel(uint32_t* memory, int64_t words, int64_t slot_words, int row_pieces,
                                      int told_words, uint32_t untold) {
  constexpr int kPieceWords = kLanes * 4;
  const int64_t stride = int64_t{grid_size()} * block_size();
  for (int64_t i = int64_t{block_index()} * block_size() + thread_index(); i < words; i += stride) {
    const auto piece = static_cast<int>(i / kPieceWords % row_pieces), word = static_cast<int>(i % 16);
    memory[i] = i < slot_words && piece * 16 + word < told_words ? untold : 0;
  }
}

}  // namespace

void pack_weights(const Sizes& size, const Persistent& plan, Pass pass, const void* weight_hh, void* packed,
                  Type io, Stream stream) {
  with_type(io, [&]<class IO>(IO) {
    const Launch settings = launch_for_all(packed_bytes(size, plan) / 16, stream);
    const auto* const from = static_cast<const IO*>(weight_hh);
    auto* const to = static_cast<uint4*>(packed);
    if (pass == Pass::forward) {
      launch("pack_weights", &pack_weights_kernel<IO, Pass::forward>, settings, size, plan, from, to);
    } else {
      launch("pack_weights", &pack_weights_kernel<IO, Pass::backward>, settings, size, plan, from, to);
    }
  });
}

Exchange clear_exchange(const Sizes& size, const Persistent& plan, Pass pass, uint32_t* memory, Type io,
                        Stream stream) {
  const int64_t slots = slot_words(size, plan), words = slots + flag_words(size, plan);
  const int64_t octets = (size.hidden + kOctet - 1) / kOctet;
  const int64_t told = octets * (pass == Pass::forward ? kOctet : kOctetTerms) * io_bytes(io) / 4;
  launch("clear_exchange", &clear_exchange_kernel, launch_for_all(words, stream), memory, words, slots,
         plan.pieces * kPersistentWarps, static_cast<int>(told), plan.signal == Signal::data ? kUntold : 0u);
  return {memory, memory + slots};
}

}  // namespace fusedlstm::cuda
