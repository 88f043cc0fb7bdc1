"""FlopCounterMode counts our operators as it counts the same equations in plain torch."""

import subprocess
import sys

import pytest
import torch
from comparison import reference_lstm
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fusedlstm

T, N, I, H = 5, 3, 4, 6
OPTIONS = {
    "one_layer": {},
    "no_bias": {"bias": False},
    "layers": {"num_layers": 3},
    "bidirectional": {"num_layers": 2, "bidirectional": True},
    "projected": {"num_layers": 2, "bidirectional": True, "proj_size": 2},
}


def _count(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def _states(options, needed):
    states = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    shapes = (states, N, options.get("proj_size", H)), (states, N, H)
    return tuple(torch.randn(shape, requires_grad=needed) for shape in shapes)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("asked", ["everything", "input", "weights", "states", "one weight"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_counts_what_plain_torch_counts(options, asked, recompute):
    lstm = fusedlstm.LSTM(I, H, **options, recompute=recompute)
    x, hx = torch.randn(T, N, I, requires_grad=True), _states(options, True)
    weights = list(lstm.parameters())
    leaves = {
        "everything": [x, *hx, *weights],
        "input": [x],
        "weights": weights,
        "states": list(hx),
        # Of both directions: the operator goes through both for the gradients of one.
        "one weight": [weight for name, weight in lstm.named_parameters() if name.startswith("weight_hh_l0")],
    }[asked]

    def passes(forward):
        loss = []
        first = _count(lambda: loss.append(forward(x, hx)[0].sum()))
        return first, _count(lambda: torch.autograd.grad(loss[0], leaves, allow_unused=True))

    forward, backward = passes(lstm)
    plain_forward, plain_backward = passes(lambda x, hx: reference_lstm(lstm, x, hx))
    assert forward == plain_forward > 0
    if recompute:  # the products of the gates once more, in every layer
        D = 2 if lstm.bidirectional else 1
        outputs = lstm.proj_size or H
        widths = [I, *[D * outputs] * (lstm.num_layers - 1)]
        plain_backward += sum(2 * T * N * D * 4 * H * (width + outputs) for width in widths)
    assert backward == plain_backward > 0


def test_counts_inference_and_padding_as_plain_torch():
    lstm, x, hx = fusedlstm.LSTM(I, H), torch.randn(T, N, I), _states({}, False)
    with torch.no_grad():
        count = _count(lambda: reference_lstm(lstm, x, hx))
        assert _count(lambda: lstm(x, hx)) == count
        assert _count(lambda: lstm(x, hx, lengths=torch.tensor([5, 0, 2]))) == count
        assert _count(lambda: lstm(torch.empty(0, N, I))) == 0


def test_counts_a_cell_as_nn_lstm_cell():
    def passes(cell):
        state = [each.detach().requires_grad_() for each in cell(torch.zeros(N, I))]
        return _count(lambda: [cell(torch.ones(N, I), state)[0].sum().backward() for _ in range(3)])

    assert passes(fusedlstm.LSTMCell(I, H)) == passes(nn.LSTMCell(I, H)) > 0


def test_the_counter_is_imported_by_others_alone_and_in_either_order():
    count = "import torch; from torch.utils.flop_counter import flop_registry as r; import fusedlstm; o = torch.ops"
    for script in (
        "import sys, fusedlstm; assert 'torch.utils.flop_counter' not in sys.modules",
        f"{count}.fusedlstm; assert o.lstm_forward in r",
        f"import fusedlstm; {count}.fusedlstm; assert o.lstm_forward in r",
    ):
        subprocess.run([sys.executable, "-c", script], check=True)
