// probes --list: every probe and fault, a line each.
// probes PROBE FAULT|none [SEED]: exit status 0 when the result is right, else 1 with a message. Inputs, and
// on the emulator the schedule, come from the seed.
#include <cstdio>
#include <exception>

#include "emulation/probes.h"

namespace {

using namespace fusedlstm::cuda::probes;

std::vector<Probe> all_probes() {
  std::vector<Probe> all;
  for (const auto& some : {thread_probes(), tensor_core_probes(), memory_probes()})
    all.insert(all.end(), some.begin(), some.end());
  return all;
}

int list() {
  for (const Probe& probe : all_probes()) {
    std::printf("%s none\n", probe.name);
    for (const char* fault : probe.faults) std::printf("%s %s\n", probe.name, fault);
  }
  return 0;
}

// Exit status of one probe.
int run(const Probe& probe, int fault, unsigned seed) {
  const std::string name = std::string(probe.name) + " " + (fault ? probe.faults[fault - 1] : "none");
  try {
    probe.run(fault, seed);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s, seed %u: %s\n", name.c_str(), seed, error.what());
    probe.run(0, seed);  // an error leaves the emulator usable; a second one ends the program
    return 1;
  }
  std::printf("%s, seed %u: right\n", name.c_str(), seed);
  return 0;
}

int usage() {
  std::fputs("usage: probes --list | probes PROBE FAULT|none [SEED]\n", stderr);
  return 2;
}

}  // namespace

int main(int count, char** words) {
  const std::vector<std::string> arguments(words + 1, words + count);
  if (arguments == std::vector<std::string>{"--list"}) return list();
  if (arguments.size() != 2 && arguments.size() != 3) return usage();
  unsigned seed = 1;
  if (arguments.size() == 3) {
    seed = static_cast<unsigned>(std::stoul(arguments[2]));
#ifndef __CUDACC__
    fusedlstm::emulation::set_seed(seed);
#endif
  }
  for (const Probe& probe : all_probes()) {
    if (probe.name != arguments[0]) continue;
    if (arguments[1] == "none") return run(probe, 0, seed);
    for (std::size_t i = 0; i < probe.faults.size(); ++i)
      if (probe.faults[i] == arguments[1]) return run(probe, static_cast<int>(i) + 1, seed);
  }
  return usage();
}
