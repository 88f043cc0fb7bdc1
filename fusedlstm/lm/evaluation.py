"""How well a model predicts a text: nats per token, perplexity, bits per byte."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fusedlstm.lm import parallel
from fusedlstm.lm.data import Batches
from fusedlstm.lm.model import LanguageModel

_LARGEST_EXPONENT = 700  # exp(710) is more than a float can hold


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy over a text, and what follows from it.

    Attributes:
        nats_per_token: mean cross-entropy.
        tokens_per_byte: tokens of the text over its bytes; 1 for the byte vocabulary.

    Example:
        >>> Evaluation(nats_per_token=math.log(8), tokens_per_byte=0.5).bits_per_byte
        1.5
    """

    nats_per_token: float
    tokens_per_byte: float

    @property
    def perplexity(self) -> float:
        """The number of equally likely tokens that would be as hard to predict."""
        return math.exp(self.nats_per_token) if self.nats_per_token < _LARGEST_EXPONENT else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Comparable across vocabularies, but an ``<unk>`` costs one token, so a small vocabulary scores too well."""
        return self.nats_per_token / math.log(2) * self.tokens_per_byte

    def __str__(self) -> str:
        return (
            f"{self.nats_per_token:.4f} nats/token, perplexity {self.perplexity:.3f}, "
            f"{self.bits_per_byte:.4f} bits/byte"
        )


def evaluate(model: LanguageModel, tokens: Tensor, text_bytes: int, window: int, batch_size: int) -> Evaluation:
    """Measure a model on a text, its state carried from window to window.

    Args:
        model: evaluated in eval mode; its mode is restored.
        tokens: at least two, [M].
        text_bytes: length of the text that the tokens stand for, in bytes.
        window: steps of a window, T; it affects memory, not the result.
        batch_size: parts of the text read side by side, N, each from a zero state; divided among the processes.

    Returns:
        The mean over all predicted tokens.

    Example:
        >>> evaluate(LanguageModel(256, 4, 8, 1), torch.arange(100), 100, window=8, batch_size=2).perplexity > 1
        True
    """
    batches = Batches(
        tokens.to(next(model.parameters()).device), window, min(batch_size, len(tokens) - 1), drop_last=False
    )
    training = model.training
    model.eval()
    nats, count, hidden = 0.0, 0, None
    with torch.no_grad():
        for index in range(len(batches)):
            x, target = (parallel.own_part(part) for part in batches[index])
            if x.numel() == 0:  # fewer parts than processes
                break
            logits, hidden = model(x, hidden)
            nats += F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum").item()
            count += target.numel()
    model.train(training)
    nats, tokens_read = parallel.total(nats, count)
    return Evaluation(nats / tokens_read, len(tokens) / text_bytes)
