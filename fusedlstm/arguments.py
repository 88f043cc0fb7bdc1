"""Checks of the arguments of LSTM and LSTMCell: each error names the argument, what it must be and what it was."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fusedlstm import memory, ops, packing
from fusedlstm.errors import ArgumentError, ArgumentTypeError

State = tuple[Tensor, Tensor]

_STATE_NAMES = "hx[0]", "hx[1]"
_SIZES = "get_expected_hidden_size", "get_expected_cell_size"
CHECKS = "check_forward_args", "check_input", "check_hidden_size", *_SIZES  # methods of nn.LSTM


def check_arguments(lstm: nn.LSTM, input: Any, hx: Any, weight: Tensor, packed: PackedSequence | None = None) -> State:
    """Checks input, the data of ``packed`` if that is given, and hx; returns hx as two tensors with a batch."""
    shape = _checked_shape(lstm, input, packed)
    if shape[-1] != lstm.input_size:
        raise _layout_error(lstm, input, packed)
    check_like("lstm", "input", input, "the parameters", weight)
    one = packed is None and len(shape) == 2  # sequence, which has no batch
    batch = packing.batch_size(packed, hx) if packed is not None else 1 if one else shape[0 if lstm.batch_first else 1]
    if hx is None:
        return _zero_state(lstm, input, batch)
    return check_state("lstm", hx, input, _state_shapes(lstm, batch), batch_dim=1 if one else None)


def has_own_checks(kind: type[nn.LSTM]) -> bool:
    """Whether a class has its own version of a method in which ``nn.LSTM`` checks the arguments of a call."""
    return any(getattr(kind, name) is not getattr(nn.LSTM, name) for name in CHECKS)


def check_by_methods(lstm: nn.LSTM, input: Any, hx: Any) -> State:
    """Checks padded input and hx by those methods; returns hx as two tensors with a batch."""
    batch_dim = 0 if lstm.batch_first else 1
    one = len(_checked_shape(lstm, input)) == 2
    if one:
        input = input.unsqueeze(batch_dim)
    if hx is None:
        state = _zero_state(lstm, input, input.shape[batch_dim])
    else:
        _check_pair("lstm", hx)
        for name, value in zip(_STATE_NAMES, hx, strict=True):
            check_tensor("lstm", name, value)
        state = (hx[0].unsqueeze(1), hx[1].unsqueeze(1)) if one else (hx[0], hx[1])
    lstm.check_forward_args(input, state, None)
    return state


def _checked_shape(lstm: nn.LSTM, input: Any, packed: PackedSequence | None = None) -> torch.Size:
    check_tensor("lstm", "input", input)
    if input.is_nested:
        raise ArgumentError(
            "lstm: input must not be a nested tensor; use torch.nested.to_padded_tensor(input, 0.0) and lengths"
        )
    shape: torch.Size = input.shape
    if len(shape) not in ((2, 3) if packed is None else (2,)):
        raise _layout_error(lstm, input, packed)
    return shape


def _layout_error(lstm: nn.LSTM, input: Tensor, packed: PackedSequence | None) -> ArgumentError:
    first = "batch, steps" if lstm.batch_first else "steps, batch"
    layout = f"[{first}, {lstm.input_size}] (or [steps, {lstm.input_size}] unbatched)"
    if packed is not None:
        layout = f"a PackedSequence of [steps, {lstm.input_size}] data"
    return ArgumentError(f"lstm: input must be {layout}, got {list(input.shape)}")


def _state_shapes(lstm: nn.LSTM, batch: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    states = lstm.num_layers * (2 if lstm.bidirectional else 1)
    return (states, batch, lstm.proj_size or lstm.hidden_size), (states, batch, lstm.hidden_size)


def _zero_state(lstm: nn.LSTM, input: Tensor, batch: int) -> State:
    h_shape, c_shape = _state_shapes(lstm, batch)
    zeros = input.new_zeros(c_shape)  # for both, as nothing writes to them; to make a small tensor takes 2 us
    return zeros if h_shape == c_shape else input.new_zeros(h_shape), zeros


def require_nn_lstms_arguments(lengths: Any, resets: Any, return_states: bool) -> None:
    """Refuses our options in the ONNX exporter that cannot export them."""
    given = {"lengths": lengths is not None, "resets": resets is not None, "return_states": return_states}
    for name in (name for name, is_given in given.items() if is_given):
        raise ArgumentError(
            f"lstm: {name} must not be given in torch.onnx.export(dynamo=False), which exports nn.LSTM's arguments"
            " alone; dynamo=True exports lengths too (fusedlstm.onnx.translations)"
        )


def check_tensor(function: str, name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(f"{function}: {name} must be a torch.Tensor, got {type(value).__name__}")


def check_like(function: str, name: str, value: Tensor, other_name: str, other: Tensor | None) -> None:
    if other is None:
        raise ArgumentTypeError(f"{function}: {other_name} must be tensors, got None")
    if value.dtype == other.dtype and value.device == other.device:
        return
    if value.dtype != other.dtype and not ops.autocasts(value, other):
        remedy = f"; use {name}.to({other.dtype})" if other.is_floating_point() else ""
        raise ArgumentError(
            f"{function}: {name} must have the dtype of {other_name}, {other.dtype}, got {value.dtype}{remedy}"
        )
    _check_device(function, name, value, other_name, other)


def _check_device(function: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.device != other.device:
        raise ArgumentError(
            f"{function}: {name} must be on the device of {other_name}, {other.device}, got {value.device};"
            f" use {name}.to({str(other.device)!r})"
        )


def check_lengths(lengths: Any, input: Tensor, N: int, T: int) -> Tensor:
    """lengths as int64 on the device of input; their values are checked only if no host synchronisation is needed."""
    check_tensor("lstm", "lengths", lengths)
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise ArgumentTypeError(f"lstm: lengths must be integers, got {lengths.dtype}; use lengths.long()")
    if list(lengths.shape) != [N]:
        raise ArgumentError(f"lstm: lengths must be [{N}], one for each sequence of input, got {list(lengths.shape)}")
    if lengths.is_meta and not input.is_meta:  # which has no values that .to() could copy
        _check_device("lstm", "lengths", lengths, "input", input)
    memory.check("lengths", lengths)
    # A subclass, such as a fake tensor, may have no values here. The operator checks them once more.
    known = type(lengths) is Tensor and lengths.device.type == "cpu" and N > 0
    if known and not torch.compiler.is_compiling() and not ops.transformed():
        low, high = (int(value) for value in lengths.aminmax())
        if low < 0 or high > T:
            raise ArgumentError(f"lstm: lengths must be in 0..{T}, the steps of input, got {low if low < 0 else high}")
    converted: Tensor = lengths.to(device=input.device, dtype=torch.int64, non_blocking=True)
    return converted


def check_resets(resets: Any, input: Tensor) -> None:
    check_tensor("lstm", "resets", resets)
    if resets.dtype != torch.bool:
        raise ArgumentTypeError(f"lstm: resets must be bool, got {resets.dtype}; use resets.bool()")
    if resets.shape != input.shape[:-1]:
        raise ArgumentError(
            f"lstm: resets must be {list(input.shape[:-1])}, one for each step of input, got {list(resets.shape)}"
        )
    _check_device("lstm", "resets", resets, "input", input)


def _check_pair(function: str, hx: Any) -> None:
    if not isinstance(hx, tuple | list) or len(hx) != 2:
        raise ArgumentTypeError(f"{function}: hx must be a pair (h_0, c_0) of tensors, got {type(hx).__name__}")


def check_state(
    function: str, hx: Any, input: Tensor, shapes: tuple[tuple[int, ...], ...], batch_dim: int | None
) -> State:
    """hx as two tensors of the given shapes; if batch_dim is given, hx lacks that dimension and it is inserted."""
    _check_pair(function, hx)
    checked = []
    for name, value, shape in zip(_STATE_NAMES, hx, shapes, strict=True):
        expected = shape if batch_dim is None else shape[:batch_dim] + shape[batch_dim + 1 :]
        if not isinstance(value, Tensor) or value.shape != expected:
            check_tensor(function, name, value)
            raise ArgumentError(f"{function}: {name} must be {list(expected)} for this input, got {list(value.shape)}")
        check_like(function, name, value, "input", input)
        checked.append(value if batch_dim is None else value.unsqueeze(batch_dim))
    return checked[0], checked[1]
