"""The GPU that records are of, and the name of the sources."""

import sys
from dataclasses import dataclass

import torch

from benchmarks import environment


@dataclass(frozen=True)
class Machine:
    """A GPU, its folder in the results, and what runs on it."""

    gpu: str
    folder: str
    driver: str
    torch: str
    commit: str


def this_machine(sources: str) -> Machine:
    """The GPU that torch sees here; it is named before the package is built.

    Args:
        sources: digest of all sources.
    """
    if not torch.cuda.is_available():
        sys.exit("agenda: this needs a GPU that torch sees, and torch sees none; `make gpu-agenda-dry` lists the parts")
    device = torch.device("cuda")
    return Machine(
        gpu=environment.device_name(device),
        folder=environment.folder(device),
        driver=environment.driver(),
        torch=torch.__version__,
        commit=commit_of(environment.commit(), sources),
    )


def commit_of(commit: str, sources: str) -> str:
    """A name that stands for these sources alone: where there is no commit, or a changed one, with their digest."""
    if commit == "unknown":
        return f"sources-{sources[:12]}"
    return f"{commit}-{sources[:8]}" if commit.endswith("-dirty") else commit
