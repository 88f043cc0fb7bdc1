"""The language model: embedding, recurrent stack, linear layer over the vocabulary."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from fusedlstm.lm.errors import InputError
from fusedlstm.modules import LSTM

CELLS: dict[str, Callable[..., nn.Module]] = {"lstm": LSTM, "torch": nn.LSTM, "rnn": nn.RNN}

STATE_TENSORS = {"lstm": 2, "torch": 2, "rnn": 1}
"""Tensors of a cell's carried state."""

State = Tensor | tuple[Tensor, Tensor]
"""Carried state: (h, c) for the LSTMs, h for the RNN, each [L, N, H]."""


class LanguageModel(nn.Module):
    """Predict the next token of each sequence from all tokens before it.

    Dropout acts on the embedding, between recurrent layers and before the linear layer. With the same seed, ``"lstm"``
    and ``"torch"`` start from the same weights, and their state_dicts are interchangeable.

    Args:
        vocab_size: number of tokens, V.
        embed_size: width of the embedding, E.
        hidden_size: width of each recurrent layer, H.
        num_layers: number of recurrent layers, L.
        cell: ``"lstm"`` for fusedlstm.LSTM, ``"torch"`` for nn.LSTM, ``"rnn"`` for nn.RNN (tanh).
        dropout: probability of zeroing an activation while training.

    Raises:
        ValueError: ``cell`` is none of the three.

    Example:
        >>> import torch
        >>> model = LanguageModel(256, 16, 32, 1, cell="lstm")
        >>> logits, hx = model(torch.randint(256, (5, 2)))
        >>> tuple(logits.shape)
        (5, 2, 256)
    """

    def __init__(
        self,
        vocab_size: int,
        embed_size: int,
        hidden_size: int,
        num_layers: int,
        cell: str = "lstm",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if cell not in CELLS:
            raise InputError(f"cell must be one of {', '.join(CELLS)}, got {cell!r}")
        # nn.LSTM warns about dropout with a single layer, where there is nothing between layers to drop.
        between = dropout if num_layers > 1 else 0.0
        self.embedding = nn.Embedding(vocab_size, embed_size)
        self.recurrent = CELLS[cell](embed_size, hidden_size, num_layers, dropout=between)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden_size, vocab_size)

    def forward(self, x: Tensor, hx: State | None = None) -> tuple[Tensor, State]:
        """Score every next token.

        Args:
            x: tokens, int64 [T, N].
            hx: state carried over from the previous call; None starts from zeros.

        Returns:
            logits [T, N, V], and the state after the last step.

        Example:
            >>> import torch
            >>> model = LanguageModel(256, 16, 32, 1)
            >>> _, hx = model(torch.randint(256, (5, 2)))
            >>> logits, hx = model(torch.randint(256, (1, 2)), hx)
        """
        y, hx_n = self.recurrent(self.dropout(self.embedding(x)), hx)
        return self.output(self.dropout(y)), hx_n


def detach(hx: State) -> State:
    """Cut the graph behind a carried state.

    Args:
        hx: state as LanguageModel returns it.

    Returns:
        The same values, from which no gradient flows back.

    Example:
        >>> import torch
        >>> detach(torch.ones(1, 2, 3, requires_grad=True)).requires_grad
        False
    """
    return hx.detach() if isinstance(hx, Tensor) else (hx[0].detach(), hx[1].detach())
