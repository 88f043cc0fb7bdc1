"""Limits of the GPUs for which plans are tested: NVIDIA's CUDA C++ Programming Guide and the cards' datasheets."""

from fusedlstm import _C

_CARDS = {  # multiprocessors, compute capability, GHz, MiB of L2 cache, GB/s
    "A100": (108, 80, 1.41, 40, 2039),
    "A10": (72, 86, 1.695, 6, 600),
    "A40": (84, 86, 1.74, 6, 696),
    "RTX 4090": (128, 89, 2.52, 72, 1008),
    "H100": (132, 90, 1.98, 50, 3352),
    "H200": (132, 90, 1.98, 60, 4814),
    "H200 MIG 1g": (16, 90, 1.98, 7.5, 602),
    "H200 MIG 3g": (60, 90, 1.98, 30, 2407),
    "B200": (148, 100, 1.965, 126, 8000),
    "RTX PRO 6000": (188, 120, 2.6, 128, 1792),
}

# Both by compute capability.
_THREADS = {80: 2048, 86: 1536, 89: 1536, 90: 2048, 100: 2048, 120: 1536}
_SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}

MULTIPROCESSORS = {name: card[0] for name, card in _CARDS.items()}
SHARED_MEMORY = {name: _SHARED_KIB[card[1]] * 1024 for name, card in _CARDS.items()}


def limits(name: str, launch_us: float = 5, multiprocessors: int | None = None) -> _C.Limits:
    """Of a card or of some of its multiprocessors, beside a host that takes as long for a launch; 0: in a graph."""
    all_multiprocessors, capability, clock, l2_mib, gb_s = _CARDS[name]
    return _C.Limits(
        multiprocessors=multiprocessors or all_multiprocessors,
        threads_per_multiprocessor=_THREADS[capability],
        shared_memory=SHARED_MEMORY[name],
        compute_capability=capability,
        clock_ghz=clock,
        l2_bytes=int(l2_mib * 2**20),
        memory_gb_s=gb_s,
        launch_us=launch_us,
    )


GPUS = {name: limits(name) for name in _CARDS}
