"""Turning the LSTMs of an existing model into fused ones, and back, in place."""

import warnings
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from fusedlstm.modules import LSTM, LSTMCell

_FUSED: dict[type[nn.Module], type[nn.Module]] = {nn.LSTM: LSTM, nn.LSTMCell: LSTMCell}
_PLAIN = {fused: plain for plain, fused in _FUSED.items()}
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

Model = TypeVar("Model", bound=nn.Module)


def replace_lstm(model: Model) -> Model:
    """Makes every ``nn.LSTM`` and ``nn.LSTMCell`` of a model a fused one, in place.

    Only the class of each module changes. Its parameters stay the same objects, so optimizers, tied weights,
    hooks, parametrizations, weight norm, frozen parameters and ``state_dict`` are not affected. A module that
    cannot be taken (a subclass with code of its own, an unsupported dtype) is left as it is, with a warning.

    Args:
        model: any module; it may be an LSTM itself.

    Returns:
        The same ``model``.

    Raises:
        TypeError: ``model`` is not a module.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Embedding(10, 8), torch.nn.LSTM(8, 16))
        >>> replace_lstm(model)[1]
        fusedlstm.LSTM(8, 16)
    """
    return _change_classes(model, _FUSED, "replace_lstm")


def restore_lstm(model: Model) -> Model:
    """Undoes :func:`replace_lstm`: every fused LSTM of a model becomes torch's own again, in place.

    Args:
        model: any module; it may be an LSTM itself.

    Returns:
        The same ``model``.

    Raises:
        TypeError: ``model`` is not a module.

    Example:
        >>> type(restore_lstm(fusedlstm.LSTM(8, 16)))
        <class 'torch.nn.modules.rnn.LSTM'>
    """
    return _change_classes(model, _PLAIN, "restore_lstm")


def _change_classes(model: Model, classes: dict[type[nn.Module], type[nn.Module]], function: str) -> Model:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model must be a torch.nn.Module, got {type(model).__name__}")
    left = []
    kinds: tuple[type[nn.Module], ...] = tuple(classes)
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            reason = _change_class(module, classes)
            if reason:
                left.append(f"{name or 'the model itself'} ({reason})")
    if left:
        warnings.warn(f"{function} left these modules as they are: {'; '.join(left)}", stacklevel=3)
    return model


def _change_class(module: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> str | None:
    """Changes the class of one module; why not, when it cannot be done."""
    own = type(module)
    parametrized = parametrize.is_parametrized(module)
    base = own.__bases__[0] if parametrized else own
    if base not in classes:
        return f"{own.__module__}.{own.__qualname__} is a subclass that may have code of its own"
    unsupported = {p.dtype for p in module.parameters()} - set(_DTYPES)
    if unsupported:
        return f"its dtype is {unsupported.pop()}"
    target = classes[base]
    if parametrized:  # torch keeps parametrized attributes as properties of a class made for this module alone
        attributes = {key: value for key, value in vars(own).items() if key not in ("__dict__", "__weakref__")}
        target = type(own.__name__, (target,), attributes)
    module.__class__ = target
    return None
