"""Turns the LSTMs of an existing model into fused ones and back, in place."""

import warnings
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from fusedlstm.modules import LSTM, LSTMCell

# The fused class of each class of torch; that of a subclass is added when the first instance is replaced.
_FUSED: dict[type[nn.Module], type[nn.Module]] = {nn.LSTM: LSTM, nn.LSTMCell: LSTMCell}
_PLAIN = {fused: plain for plain, fused in _FUSED.items()}
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

Model = TypeVar("Model", bound=nn.Module)


def replace_lstm(model: Model) -> Model:
    """Makes every ``nn.LSTM`` and ``nn.LSTMCell`` of a model a fused one, in place.

    Only the class of each module changes. Its parameters stay the same objects, so optimizers, tied weights,
    hooks, parametrizations, weight norm, frozen parameters and ``state_dict`` are not affected. A subclass keeps its
    other bases and its methods. A module that cannot be replaced is left as it is, with a warning: one of an
    unsupported dtype, or one that defines ``forward`` or calls ``super()`` itself.

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
    """Changes the class of one module; returns the reason if that is not possible."""
    if "forward" in vars(module):
        return "its forward is another function, set on the module itself"
    unsupported = {p.dtype for p in module.parameters()} - set(_DTYPES)
    if unsupported:
        return f"its dtype is {unsupported.pop()}"
    own = type(module)
    try:
        if parametrize.is_parametrized(module):  # torch then gives the module a class of its own, with properties
            target = _with_bases(own, (_counterpart(own.__bases__[0], classes),), {})
        else:
            target = _counterpart(own, classes)
    except _CodeOfItsOwnError as error:
        return str(error)
    module.__class__ = target
    return None


class _CodeOfItsOwnError(Exception):
    pass


def _counterpart(own: type[nn.Module], classes: dict[type[nn.Module], type[nn.Module]]) -> type[nn.Module]:
    """The class that replaces ``own``; for a subclass it is made on first use."""
    if own in classes:
        return classes[own]
    calls_super = any("__class__" in _closure(part) for name, part in vars(own).items() if name != "__init__")
    if classes is not _FUSED or "forward" in vars(own) or calls_super:
        raise _CodeOfItsOwnError(f"{own.__module__}.{own.__qualname__} is a subclass that may have code of its own")
    ours = (nn.LSTM, nn.LSTMCell)
    fused = _with_bases(
        own,
        tuple(_counterpart(base, classes) if issubclass(base, ours) else base for base in own.__bases__),
        # Its name is that of the class it replaces, so a pickle stores that class and replaces it again on loading.
        {"__reduce_ex__": lambda self, protocol: (_empty, (own,), *object.__reduce_ex__(self, protocol)[2:])},
    )
    _FUSED[own], _PLAIN[fused] = fused, own
    return fused


def _with_bases(own: type[nn.Module], bases: tuple[type, ...], more: dict[str, Any]) -> type[nn.Module]:
    attributes = {name: part for name, part in vars(own).items() if name not in ("__dict__", "__weakref__")}
    metaclass: Any = type(own)
    made: type[nn.Module] = metaclass(own.__name__, bases, attributes | more)
    return made


def _closure(part: Any) -> tuple[str, ...]:
    """Variables that a function or property takes from its enclosing scope; super() takes __class__."""
    functions = (part.fget, part.fset) if isinstance(part, property) else (getattr(part, "__func__", part),)
    return tuple(name for each in functions if isinstance(each, FunctionType) for name in each.__code__.co_freevars)


def _empty(own: type[nn.Module]) -> nn.Module:
    module = _counterpart(own, _FUSED)
    return module.__new__(module)
