// A flag of each warp, released without a barrier, against one flag of the block after a barrier.
#include "step.cuh"

namespace fusedlstm::micro {
namespace {

void section(Bench& bench) {
  constexpr int kBlocks = 64, kBytes = 1024;  // all eight warps publish
  measure_exchange<Shown::block_flag>(bench, "flag of the block", kBlocks, kBytes, false);
  measure_exchange<Shown::warp_flags>(bench, "flag of each warp", kBlocks, kBytes, false);
}

}  // namespace
}  // namespace fusedlstm::micro

int main(int argc, char** argv) {
  return fusedlstm::micro::run(argc, argv, fusedlstm::micro::section);
}
