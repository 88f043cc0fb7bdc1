// What the sources of the persistent kernels share: launch and dispatch.
#pragma once

#include <stdexcept>
#include <utility>

#include "exchange.cuh"

namespace fusedlstm::cuda {

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
