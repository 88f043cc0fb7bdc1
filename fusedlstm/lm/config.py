"""The settings of a training run."""

from __future__ import annotations

import reprlib
import sys
from dataclasses import dataclass

from fusedlstm.lm.errors import InputError
from fusedlstm.lm.model import CELLS, LanguageModel

SEED_LIMIT = 2**63  # the seeds of torch's generators are int64
_SIZE_LIMIT = 2**31  # torch counts in int64, and a weight has four times the square of a size


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run; together with the text they determine every weight of the result.

    Attributes:
        data: text files, joined in order; empty means the Python standard library's top-level modules.
        vocabulary: ``"bytes"`` or ``"words"``.
        max_words: with words, how many of the most frequent to keep; None keeps all.
        held_out: fraction of the text kept for evaluation, its end.
        cell: ``"lstm"`` (fusedlstm.LSTM), ``"torch"`` (nn.LSTM) or ``"rnn"`` (nn.RNN).
        embed_size: width of the embedding, E.
        hidden_size: width of each recurrent layer, H.
        num_layers: number of recurrent layers, L.
        dropout: probability of zeroing an activation.
        window: steps that gradients flow back through, T.
        batch_size: streams of text trained side by side, N.
        steps: updates of the whole run; the learning rate decays over them.
        learning_rate: Adam's, at its highest.
        clip: largest norm of the gradient.
        seed: of initial weights and dropout.

    Raises:
        ValueError: a field is out of its range.

    Example:
        >>> TrainConfig(hidden_size=64).hidden_size
        64
    """

    data: tuple[str, ...] = ()
    vocabulary: str = "bytes"
    max_words: int | None = None
    held_out: float = 0.1
    cell: str = "lstm"
    embed_size: int = 128
    hidden_size: int = 512
    num_layers: int = 1
    dropout: float = 0.0
    window: int = 64
    batch_size: int = 32
    steps: int = 2000
    learning_rate: float = 3e-3
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        texts = isinstance(self.data, tuple) and all(isinstance(name, str) for name in self.data)
        _require(texts, "data", "a tuple of file names", self.data)
        for name in ("embed_size", "hidden_size", "num_layers", "window", "batch_size", "steps", "max_words"):
            value = getattr(self, name)
            holds = _is_whole(value) and 1 <= value < _SIZE_LIMIT
            _require(holds or (value is None and name == "max_words"), name, "at least 1 and below 2**31", value)
        for name in ("learning_rate", "clip"):
            value = getattr(self, name)
            _require(_is_real(value) and 0 < value <= sys.float_info.max, name, "a finite number above 0", value)
        value = self.held_out
        _require(_is_real(value) and 0 < value < 1, "held_out", "a fraction between 0 and 1", value)
        value = self.dropout
        _require(_is_real(value) and 0 <= value < 1, "dropout", "at least 0 and below 1", value)
        _require(_is_whole(self.seed) and 0 <= self.seed < SEED_LIMIT, "seed", "at least 0 and below 2**63", self.seed)
        _require(self.vocabulary in ("bytes", "words"), "vocabulary", "bytes or words", self.vocabulary)
        _require(isinstance(self.cell, str) and self.cell in CELLS, "cell", f"one of {', '.join(CELLS)}", self.cell)
        if self.max_words is not None and self.vocabulary != "words":
            raise InputError("max_words must be left out with a vocabulary of bytes; leave it out, or choose words")

    def build_model(self, vocab_size: int) -> LanguageModel:
        """Return the untrained model of this configuration.

        Args:
            vocab_size: number of tokens, V.
        """
        return LanguageModel(
            vocab_size, self.embed_size, self.hidden_size, self.num_layers, cell=self.cell, dropout=self.dropout
        )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, float) or _is_whole(value)


def _require(holds: bool, name: str, rule: str, value: object) -> None:
    if not holds:
        shown = value if isinstance(value, str | int | float) else reprlib.repr(value)  # not all of a nested list
        raise InputError(f"{name} must be {rule}, got {shown}")
