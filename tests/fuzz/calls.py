"""A problem computed three times: by fusedlstm, by torch's own modules, and by the loop."""

import contextlib

import torch
from comparison import unless_onednn_refuses
from fuzz import loop
from fuzz.problem import Problem
from fuzz.values import Layout, Values, view
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fusedlstm

Results = dict[str, Tensor]  # outputs and "grad_" of arguments, on the CPU, laid out as the loop's


def by_fusedlstm(problem: Problem, values: Values, device: torch.device) -> Results:
    """The call itself; a change of its arguments is an AssertionError."""
    layout = Layout(problem)
    arranged = {
        name: layout.sequence(value) if name == "x" else layout.state(value) if name in ("h0", "c0") else value
        for name, value in values.arguments.items()
    }
    leaves = {}
    for name, value in arranged.items():
        leaf = view(value.to(device), problem.views.get(name, "dense"))
        leaves[name] = nn.Parameter(leaf) if name.startswith("w") else leaf
        leaves[name].requires_grad_(name in problem.needs)
    with getattr(torch, problem.grad_mode)():
        outputs = _call(problem, layout, leaves, values.resets)
    for name, leaf in leaves.items():
        assert same_bits(leaf.detach().cpu(), arranged[name]), f"the call changed {name}"
    back = {"y": layout.sequence_back, "h_n": layout.state_back, "c_n": layout.state_back}
    back |= {"h_all": layout.all_back, "c_all": layout.all_back}
    found = {name: back[name](output.detach()) for name, output in outputs.items()}
    forth = {"y": layout.sequence, "h_n": layout.state, "c_n": layout.state}
    forth |= {
        name: (lambda states: states[:, :, 0]) if problem.layout == "one" else _same for name in ("h_all", "c_all")
    }
    cotangents = {
        name: view(forth[name](value).to(device), problem.views[name]) for name, value in values.cotangents.items()
    }
    assert problem.needs or not any(output.requires_grad for output in outputs.values())
    for name, gradient in _gradients(problem, outputs, leaves, cotangents).items():
        arrange = layout.sequence_back if name == "x" else layout.state_back if name in ("h0", "c0") else _same
        found[f"grad_{name}"] = arrange(gradient)
    return {name: tensor.cpu() for name, tensor in found.items()}


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one dtype are equal, NaN included."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    return torch.equal(one.view(integers), other.view(integers))


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _gradients(problem: Problem, outputs: Results, leaves: Results, cotangents: Results) -> Results:
    wanted = {name: leaf for name, leaf in leaves.items() if name in problem.needs}
    from_outputs = [name for name in cotangents if outputs[name].requires_grad]
    if not wanted or not from_outputs:
        return {name: torch.zeros_like(leaf) for name, leaf in wanted.items()}
    gradients = torch.autograd.grad(
        [outputs[name] for name in from_outputs],
        list(wanted.values()),
        [cotangents[name] for name in from_outputs],
        allow_unused=True,
    )
    pairs = zip(wanted.items(), gradients, strict=True)
    return {name: torch.zeros_like(leaf) if grad is None else grad for (name, leaf), grad in pairs}


def _call(problem: Problem, layout: Layout, leaves: Results, resets: Tensor | None) -> Results:
    x, state = leaves["x"], (leaves["h0"], leaves["c0"])
    weights = [leaf for name, leaf in leaves.items() if name.startswith("w")]
    options: dict[str, object] = {}
    if problem.lengths is not None and not layout.packed:
        lengths = torch.tensor(problem.lengths, dtype=problem.lengths_dtype)
        options["lengths"] = view(lengths, problem.views["lengths"])
    if resets is not None:
        options["resets"] = view(layout.sequence(resets).to(x.device), problem.views["resets"])
    if problem.return_states:
        options["return_states"] = True
    if problem.form == "cell":
        cell = _with_parameters(fusedlstm.LSTMCell(problem.I, problem.H, problem.bias), weights)
        return _steps(cell, x, state, problem)
    given = layout.packed_sequence(x) if layout.packed else x
    if problem.form == "functional":
        if "lengths" in options:
            options["lengths"] = options["lengths"].to(x.device, torch.int64)
        options |= {"num_layers": problem.L, "bidirectional": problem.D == 2, "batch_first": problem.batch_first}
        options |= {"dropout": problem.dropout, "recompute": problem.recompute}
        y, last, *every = fusedlstm.lstm(given, state, weights, **options)
    else:
        module = _module(problem, weights)
        y, last, *every = module(given, *((state,) if problem.state else ()), **options)
    if layout.packed:
        assert isinstance(y, PackedSequence)
        for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            ours, theirs = getattr(y, name), getattr(given, name)
            assert ours is theirs or torch.equal(ours, theirs), f"{name} of the output differ from those of the input"
        y = y.data
    outputs = {"y": y, "h_n": last[0], "c_n": last[1]}
    return outputs | (dict(zip(("h_all", "c_all"), every[0], strict=True)) if every else {})


def _module(problem: Problem, weights: list[Tensor]) -> nn.LSTM:
    options = {"bias": problem.bias, "batch_first": problem.batch_first, "dropout": problem.dropout}
    options |= {"bidirectional": problem.D == 2, "proj_size": problem.P}
    if problem.form == "lstm":
        module = fusedlstm.LSTM(problem.I, problem.H, problem.L, **options, recompute=problem.recompute)
    else:
        module = fusedlstm.replace_lstm(nn.LSTM(problem.I, problem.H, problem.L, **options))
        module.recompute = problem.recompute
    return _with_parameters(module, weights).train(not problem.dropout)


def _steps(cell: nn.LSTMCell, x: Tensor, state: tuple[Tensor, Tensor], problem: Problem) -> Results:
    """A cell stepped over x: the outputs of an LSTM."""
    steps = []
    carried = state if problem.state else None
    for step in x:
        carried = cell(step, carried)
        steps.append(carried[0])
    return {"y": torch.stack(steps), "h_n": carried[0], "c_n": carried[1]}


def by_loop(problem: Problem, values: Values, dtype: torch.dtype) -> Results:
    """The loop in a dtype: in float64 the truth."""
    leaves = {name: value.to(dtype).requires_grad_(name in problem.needs) for name, value in values.arguments.items()}
    weights = [leaf for name, leaf in leaves.items() if name.startswith("w")]
    outputs = loop.run(problem, leaves["x"], leaves["h0"], leaves["c0"], weights, values.resets)
    cotangents = {name: value.to(dtype) for name, value in values.cotangents.items()}
    gradients = _gradients(problem, outputs, leaves, cotangents)
    found = {name: outputs[name].detach() for name in problem.results}
    return found | {f"grad_{name}": gradient for name, gradient in gradients.items()}


def by_torch(problem: Problem, values: Values, device: torch.device) -> list[Results]:
    """What torch's own implementations give, or the loop in the dtype where they cannot compute the problem."""
    if problem.form == "cell" and problem.T > 0:
        return [_torchs(problem, values, device)]
    beyond = problem.reset_rate is not None or problem.return_states or 0 in (problem.T, problem.N, problem.I)
    if beyond or 0 in problem.steps:
        return [by_loop(problem, values, problem.dtype)]
    found = []
    for fast in (True, False):
        cudnn = torch.backends.cudnn.flags(enabled=fast, allow_tf32=False)
        onednn = torch.backends.mkldnn.flags(enabled=fast, allow_tf32=None)
        with cudnn if device.type == "cuda" else onednn:
            results = unless_onednn_refuses(lambda: _torchs(problem, values, device))
        found += [] if results is None else [results]
    return found


def _torchs(problem: Problem, values: Values, device: torch.device) -> Results:
    leaves = {name: value.clone().to(device).requires_grad_() for name, value in values.arguments.items()}
    weights = [nn.Parameter(leaf.detach()) for name, leaf in leaves.items() if name.startswith("w")]
    leaves |= {f"w{index}": weight for index, weight in enumerate(weights)}
    x, state = leaves["x"], (leaves["h0"], leaves["c0"])
    with contextlib.ExitStack() as stack:
        if not problem.needs:
            stack.enter_context(torch.no_grad())
        if problem.form == "cell":
            cell = _with_parameters(nn.LSTMCell(problem.I, problem.H, problem.bias), weights)
            one = x, tuple(each[0] for each in state)
            outputs = _steps(cell, *one, problem)
            outputs = {name: output if name == "y" else output[None] for name, output in outputs.items()}
        else:
            options = {"bias": problem.bias, "bidirectional": problem.D == 2, "proj_size": problem.P}
            module = _with_parameters(nn.LSTM(problem.I, problem.H, problem.L, **options), weights)
            if problem.lengths is None:
                y, last = module(x, state)
            else:
                y, last = module(pack_padded_sequence(x, torch.tensor(problem.lengths), enforce_sorted=False), state)
                y, _ = pad_packed_sequence(y, total_length=problem.T)
            outputs = {"y": y, "h_n": last[0], "c_n": last[1]}
    cotangents = {name: value.to(device) for name, value in values.cotangents.items()}
    gradients = _gradients(problem, outputs, leaves, cotangents)
    found = {name: output.detach() for name, output in outputs.items()}
    found |= {f"grad_{name}": gradient for name, gradient in gradients.items()}
    return {name: tensor.cpu() for name, tensor in found.items()}


def _with_parameters(module: nn.Module, weights: list[nn.Parameter]) -> nn.Module:
    for (name, _), weight in zip(list(module.named_parameters()), weights, strict=True):
        setattr(module, name, weight)
    return module
