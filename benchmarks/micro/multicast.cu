// A flag, then a bulk copy of a whole state to clusters of two blocks, each of which copies half of it to
// both.
#include "bulk.cuh"

namespace fusedlstm::micro {
namespace {

void section(Bench& bench) {
  measure_bulk<2>(bench);
}

}  // namespace
}  // namespace fusedlstm::micro

int main(int argc, char** argv) {
  return fusedlstm::micro::run(argc, argv, fusedlstm::micro::section);
}
