"""Which tensors a checkpoint holds: names, dtypes and shapes follow from the settings and the place in the text."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fusedlstm.lm.config import TrainConfig
from fusedlstm.lm.model import STATE_TENSORS


@dataclass(frozen=True)
class Layout:
    """A tensor as safetensors describes it.

    Attributes:
        dtype: its name in the format, ``"F32"`` or ``"F64"``.
        shape: sizes.
    """

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {[*self.shape]}"


def expected(config: TrainConfig, vocab_size: int, step: int, position: int) -> dict[str, Layout]:
    """Describe the tensors of a checkpoint without allocating any.

    Args:
        config: settings of the run.
        vocab_size: number of tokens, V.
        step: updates made.
        position: next window within the epoch; at its start no state is carried.

    Returns:
        Each tensor under its name.

    Raises:
        RuntimeError: a size of the model is more than torch can count.

    Example:
        >>> expected(TrainConfig(hidden_size=8), 256, step=0, position=0)["model.output.weight"].shape
        (256, 8)
    """
    with torch.device("meta"):
        model = config.build_model(vocab_size)
    weights = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    tensors = {f"model.{name}": Layout("F32", shape) for name, shape in weights.items()}
    if step:
        for index, parameter in enumerate(model.parameters()):
            shape = tuple(parameter.shape)
            moments = {"step": (), "exp_avg": shape, "exp_avg_sq": shape}
            tensors |= {f"optimizer.{index}.{name}": Layout("F32", sizes) for name, sizes in moments.items()}
    if position:
        state = Layout("F32", (config.num_layers, config.batch_size, config.hidden_size))
        tensors |= {f"hidden.{index}": state for index in range(STATE_TENSORS[config.cell])}
    return {**tensors, "losses": Layout("F64", (step,))}
