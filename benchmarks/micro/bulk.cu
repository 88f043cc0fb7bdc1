// A flag, then a bulk copy of a whole state to the shared memory of every block.
#include "bulk.cuh"

namespace fusedlstm::micro {
namespace {

void section(Bench& bench) {
  measure_bulk<1>(bench);
}

}  // namespace
}  // namespace fusedlstm::micro

int main(int argc, char** argv) {
  return fusedlstm::micro::run(argc, argv, fusedlstm::micro::section);
}
