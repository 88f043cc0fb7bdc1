"""Sizes and options that the suite runs over."""

from dataclasses import dataclass, field
from typing import Any

import torch

DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16}


@dataclass(frozen=True)
class Case:
    """One LSTM and the size of its input: T steps, N sequences, I features, H hidden units, and nn.LSTM's options."""

    name: str
    T: int
    N: int
    I: int
    H: int
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}_T{self.T}_N{self.N}_I{self.I}_H{self.H}"


CASES = [
    Case("one_of_everything", 1, 1, 1, 1),
    Case("one_step", 1, 5, 7, 9),
    Case("one_sequence", 9, 1, 16, 24),
    Case("full_vectors", 6, 8, 32, 64),
    Case("odd", 7, 3, 5, 13),
    Case("just_past_a_vector", 4, 7, 3, 129),
    Case("just_short_of_a_vector", 4, 7, 3, 127),
    Case("batch_past_a_tile", 3, 13, 4, 17),
    Case("long", 200, 2, 4, 8),
    Case("no_bias", 5, 4, 6, 10, {"bias": False}),
    Case("batch_first", 5, 4, 6, 10, {"batch_first": True}),
    Case("layers", 5, 4, 6, 10, {"num_layers": 3}),
    Case("bidirectional", 5, 4, 6, 10, {"bidirectional": True}),
    Case("projected", 5, 4, 6, 10, {"proj_size": 3}),
    Case("all", 6, 5, 7, 33, {"num_layers": 2, "bidirectional": True, "proj_size": 17, "batch_first": True}),
    Case("all_no_bias", 6, 5, 7, 33, {"num_layers": 2, "bidirectional": True, "proj_size": 1, "bias": False}),
    Case("packed", 9, 6, 3, 17, {"bidirectional": True}),
    Case("packed_and_projected", 9, 6, 3, 17, {"proj_size": 5}),
    Case("shared_among_threads", 4, 24, 40, 200, {"bidirectional": True}),
    Case("batch_past_what_uses_a_panel_at_once", 3, 60, 40, 300),
    Case("few_rows_shared_among_threads", 2, 3, 40, 300, {"bidirectional": True}),
    Case("few_rows_and_projection_shared_among_threads", 2, 3, 40, 300, {"proj_size": 100}),
    Case("projection_shared_among_threads", 4, 24, 40, 200, {"proj_size": 100}),
]
