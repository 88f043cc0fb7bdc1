"""Limits of the GPUs for which plans are tested: NVIDIA's CUDA C++ Programming Guide and the cards' datasheets."""

from fusedlstm import _C

_CARDS = {  # multiprocessors, compute capability, GHz
    "A100": (108, 80, 1.41),
    "A10": (72, 86, 1.695),
    "A40": (84, 86, 1.74),
    "RTX 4090": (128, 89, 2.52),
    "H100": (132, 90, 1.98),
    "H200": (132, 90, 1.98),
    "H200 MIG 1g": (16, 90, 1.98),
    "H200 MIG 3g": (60, 90, 1.98),
    "B200": (148, 100, 1.965),
    "RTX PRO 6000": (188, 120, 2.6),
}

# Both by compute capability.
_THREADS = {80: 2048, 86: 1536, 89: 1536, 90: 2048, 100: 2048, 120: 1536}
_SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}

MULTIPROCESSORS = {name: multiprocessors for name, (multiprocessors, _, _) in _CARDS.items()}
SHARED_MEMORY = {name: _SHARED_KIB[capability] * 1024 for name, (_, capability, _) in _CARDS.items()}
GPUS = {
    name: _C.Limits(
        multiprocessors=multiprocessors,
        threads_per_multiprocessor=_THREADS[capability],
        shared_memory=SHARED_MEMORY[name],
        compute_capability=capability,
        clock_ghz=clock,
    )
    for name, (multiprocessors, capability, clock) in _CARDS.items()
}
