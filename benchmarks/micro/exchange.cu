// The exchange of a state among blocks, by polling the data and by flags with an acquire load.
#include "step.cuh"

namespace fusedlstm::micro {
namespace {

void section(Bench& bench) {
  for (const int blocks : {16, 64, 128}) {
    if (blocks > bench.multiprocessors()) continue;
    for (const int bytes : {16, 1024}) {
      measure_exchange<Shown::data>(bench, "data", blocks, bytes, false);
      measure_exchange<Shown::data>(bench, "data, fences", blocks, bytes, true);
      measure_exchange<Shown::block_flag>(bench, "flags", blocks, bytes, false);
    }
  }
}

}  // namespace
}  // namespace fusedlstm::micro

int main(int argc, char** argv) {
  return fusedlstm::micro::run(argc, argv, fusedlstm::micro::section);
}
