"""What the GPUs offer for which plans are tested: NVIDIA's CUDA C++ Programming Guide and the cards' datasheets."""

from fusedlstm import _C

GPUS = {
    "A100": _C.Limits(multiprocessors=108, threads_per_multiprocessor=2048),
    "A10": _C.Limits(multiprocessors=72, threads_per_multiprocessor=1536),
    "A40": _C.Limits(multiprocessors=84, threads_per_multiprocessor=1536),
    "RTX 4090": _C.Limits(multiprocessors=128, threads_per_multiprocessor=1536),
    "H100": _C.Limits(multiprocessors=132, threads_per_multiprocessor=2048),
    "H200": _C.Limits(multiprocessors=132, threads_per_multiprocessor=2048),
    "B200": _C.Limits(multiprocessors=148, threads_per_multiprocessor=2048),
}
