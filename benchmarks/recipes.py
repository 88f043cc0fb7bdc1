"""What users build on nn.LSTM for what it does not have: layers of alternating directions, episodes that end."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

State = tuple[Tensor, Tensor]


class Alternating(nn.Module):
    """Layers of one direction each; every second one runs from the end to the start, by flipping its input and output.

    As bonito builds its basecallers (`bonito/nn.py`).
    """

    def __init__(self, layers: list[nn.LSTM]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, hx: State) -> tuple[Tensor, State]:
        """As nn.LSTM's for that many layers; the last state of a flipped layer is that of its first step."""
        h_n, c_n = [], []
        for index, layer in enumerate(self.layers):
            y, (h, c) = layer(x.flip(0) if index % 2 else x, tuple(state[index : index + 1] for state in hx))
            x = y.flip(0) if index % 2 else y
            h_n.append(h)
            c_n.append(c)
        return x, (torch.cat(h_n), torch.cat(c_n))


class BySegments(nn.Module):
    """An nn.LSTM called for the steps between two resets of any row, with the states of rows that begin set to zero.

    As rl_games does (`rl_games/common/layers/recurrent.py`, `RnnWithDones`): in each call the host reads which steps
    have a reset.
    """

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor, hx: State, resets: Tensor) -> tuple[Tensor, State]:
        """As that of `fusedlstm.LSTM` with ``resets``, bool [T, N]."""
        begins = 1 + resets[1:].any(1).nonzero().flatten()
        keeps = (~resets).to(x.dtype)[:, :, None]
        outputs = []
        for first, end in pairwise([0, *begins.tolist(), len(x)]):
            y, hx = self.lstm(x[first:end], (hx[0] * keeps[first], hx[1] * keeps[first]))
            outputs.append(y)
        return torch.cat(outputs), hx


class PaddedEpisodes(nn.Module):
    """An nn.LSTM for a batch that has each piece of an episode as a row of its own, padded to the longest.

    As rsl_rl does (`rsl_rl/utils/utils.py`, `split_and_pad_trajectories`). Which step goes where is worked out at the
    first call, for rsl_rl does this once for all passes over a rollout; a call moves the input and the output.
    """

    class Layout(NamedTuple):
        """``places`` [T * N]: of each step in the padded batch of ``steps`` x ``rows``; ``firsts`` [N]: the rows that
        begin with the batch."""

        places: Tensor
        firsts: Tensor
        steps: int
        rows: int

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.lstm = lstm
        self.layout: PaddedEpisodes.Layout | None = None

    @staticmethod
    def layout_of(resets: Tensor) -> Layout:
        """Where the steps go, by resets [T, N]."""
        begins = resets.clone()
        begins[0] = True
        row = begins.T.flatten().cumsum(0).view(begins.T.shape).T - 1
        step = torch.arange(len(begins), device=begins.device)[:, None]
        within = step - torch.where(begins, step, 0).cummax(0).values
        rows = int(row[-1, -1]) + 1
        return PaddedEpisodes.Layout((within * rows + row).flatten(), row[0], int(within.max()) + 1, rows)

    def forward(self, x: Tensor, hx: State, resets: Tensor) -> tuple[Tensor, None]:
        """The output alone: padding goes on after the last step of an episode, and so the last states are lost.

        ``resets`` must be those of the first call.
        """
        if self.layout is None:
            self.layout = self.layout_of(resets)
        places, firsts, steps, rows = self.layout
        keeps = (~resets[0]).to(x.dtype)[:, None]
        h0, c0 = (s.new_zeros(len(s), rows, s.shape[2]).index_copy(1, firsts, s * keeps) for s in hx)
        padded = x.new_zeros(steps * rows, x.shape[2]).index_copy(0, places, x.flatten(0, 1))
        y, _ = self.lstm(padded.view(steps, rows, -1), (h0, c0))
        return y.flatten(0, 1).index_select(0, places).view(*x.shape[:2], -1), None
