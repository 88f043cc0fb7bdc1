"""mypy accepts right code of a user and reports wrong code."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fusedlstm

pytest.importorskip("mypy", reason="mypy is part of the test extra")

ROOT = Path(__file__).parent.parent
RIGHT = """\
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from typing_extensions import assert_type

import fusedlstm

State = tuple[Tensor, Tensor]


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = fusedlstm.LSTM(8, 16, num_layers=2, batch_first=True, dropout=0.1, dtype=torch.float64)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        y, (_h, _c) = self.lstm(x, lengths=lengths)
        return y


class Own(fusedlstm.LSTM):
    pass


x, h, c = torch.randn(5, 2, 8), torch.zeros(1, 2, 16), torch.zeros(1, 2, 16)
packed = pack_sequence([x[:3, 0], x[:2, 1]])
lstm = Own(8, 16, recompute=True, device="cpu")
assert_type(lstm(x), tuple[Tensor, State])
assert_type(lstm(x, (h, c)), tuple[Tensor, State])
assert_type(lstm(x, None, resets=x[..., 0] > 0), tuple[Tensor, State])
assert_type(lstm(x, return_states=True), tuple[Tensor, State, State])
assert_type(lstm(x, return_states=False), tuple[Tensor, State])
assert_type(lstm(x, return_states=bool(h.any())), tuple[Tensor, State] | tuple[Tensor, State, State])
assert_type(lstm(packed), tuple[PackedSequence, State])
assert_type(lstm(packed, (h, c)), tuple[PackedSequence, State])
lstm.recompute = False

cell = fusedlstm.LSTMCell(8, 16)
assert_type(cell(x[0]), State)
h_1: Tensor = cell(x[0])[0]
h_1, _ = cell(x[0], (h[0], c[0]))

assert_type(fusedlstm.replace_lstm(Tagger()), Tagger)
assert_type(fusedlstm.restore_lstm(Tagger()), Tagger)
assert_type(fusedlstm.replace_lstm(nn.Sequential(nn.LSTM(8, 16))), nn.Sequential)

weights = list(lstm.parameters())
assert_type(fusedlstm.lstm(x, (h, c), weights, num_layers=1, lengths=None, recompute=True), tuple[Tensor, State])
assert_type(fusedlstm.lstm(x, (h, c), tuple(weights), return_states=True), tuple[Tensor, State, State])
assert_type(fusedlstm.lstm(x, (h, c), weights, return_states=False, batch_first=True), tuple[Tensor, State])
either = fusedlstm.lstm(x, (h, c), weights, return_states=bool(h.any()))
assert_type(either, tuple[Tensor, State] | tuple[Tensor, State, State])
assert_type(fusedlstm.lstm(packed, (h, c), weights, bidirectional=False), tuple[PackedSequence, State])
"""
WRONG = """\
import torch
from torch import nn

import fusedlstm

x, lstm = torch.randn(5, 2, 8), fusedlstm.LSTM(8, 16)
packed = nn.utils.rnn.pack_sequence([x[:3, 0], x[:2, 1]])
fusedlstm.LSTM(8, "16")  # wrong
fusedlstm.LSTM(8, 16, recompute=1)  # wrong
fusedlstm.LSTM(8, 16, recompte=True)  # wrong
lstm([x])  # wrong
lstm(x, x)  # wrong
lstm(x, lenghts=None)  # wrong
lstm(packed, lengths=torch.tensor([3, 2]))  # wrong
lstm(packed, return_states=True)  # wrong
y, state, states = lstm(x)  # wrong
y, state = lstm(x, return_states=True)  # wrong
lstm.recompute = "yes"  # wrong
fusedlstm.LSTMCell(8, 16, num_layers=2)  # wrong
fusedlstm.LSTMCell(8, 16)(packed)  # wrong
fusedlstm.replace_lstm("model")  # wrong
fusedlstm.lstm(x, weights=[])  # wrong
fusedlstm.lstm(x, (x, x), [], num_layers="2")  # wrong
fusedlstm.lstm(x, (x, x), [], recompte=True)  # wrong
fusedlstm.lstm(packed, (x, x), [], lengths=torch.tensor([3, 2]))  # wrong
fusedlstm.lstm(packed, (x, x), [], return_states=True)  # wrong
y, state, states = fusedlstm.lstm(x, (x, x), [])  # wrong
y, state = fusedlstm.lstm(x, (x, x), [], return_states=True)  # wrong
fusedlstm.rnn(x)  # wrong
"""


def _mypy(folder, code):
    """Checks code with the package in a folder of installed ones, where mypy needs py.typed."""
    site = folder / "site"
    site.mkdir()
    (site / "fusedlstm").symlink_to(Path(fusedlstm.__file__).parent)
    (folder / "user.py").write_text(code)
    # The project's strict settings, and its cache, in which `make lint` has stored torch's types.
    options = ["--config-file", ROOT / "pyproject.toml", "--cache-dir", ROOT / ".mypy_cache", "--hide-error-context"]
    return subprocess.run(
        [sys.executable, "-m", "mypy", *options, "user.py"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_right_code_passes(tmp_path):
    run = _mypy(tmp_path, RIGHT)
    assert run.returncode == 0, run.stdout + run.stderr


def test_wrong_code_is_reported(tmp_path):
    run = _mypy(tmp_path, WRONG)
    reported = {int(line) for line in re.findall(r"^user\.py:(\d+): error", run.stdout, flags=re.MULTILINE)}
    marked = {number for number, line in enumerate(WRONG.splitlines(), 1) if line.endswith("# wrong")}
    assert reported == marked, run.stdout + run.stderr
