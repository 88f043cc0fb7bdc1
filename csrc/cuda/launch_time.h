#pragma once

namespace fusedlstm::cuda {

// The host's time to launch a kernel, in microseconds: the median of some launches, timed once a process.
double launch_us();

}  // namespace fusedlstm::cuda
