"""Turns the LSTMs of an existing model into fused ones and back, in place."""

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from fusedlstm import arguments
from fusedlstm.modules import LSTM, LSTMCell

# The fused class of each class of torch; that of a subclass is added when the first instance is replaced.
_FUSED: dict[type[nn.Module], type[nn.Module]] = {nn.LSTM: LSTM, nn.LSTMCell: LSTMCell}
_PLAIN = {fused: plain for plain, fused in _FUSED.items()}
_STANDARD = ("abc", "builtins", "typing", "typing_extensions")  # whose classes put no class into a registry
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

Model = TypeVar("Model", bound=nn.Module)


def replace_lstm(model: Model) -> Model:
    """Makes every ``nn.LSTM`` and ``nn.LSTMCell`` of a model a fused one, in place.

    Only the class of each module changes. Its parameters stay the same objects, so optimizers, tied weights,
    hooks, parametrizations, weight norm, frozen parameters and ``state_dict`` are not affected. The new class is a
    subclass of the old one: ``fusedlstm.LSTM`` of ``nn.LSTM``, and a module of a class ``Own`` gets one that is derived
    from ``Own`` and ``fusedlstm.LSTM``, in this order. A module that cannot be replaced is left as it is, and one
    warning names all such modules and the reasons: an unsupported dtype, a ``forward`` set on the module itself,
    parameters that a lazy module has not made yet, TorchScript, a class with an ``__init_subclass__`` or a metaclass
    of its own. An exception leaves the model as it was.

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
    return _change_classes(model, _fused_class_for, "replace_lstm")


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
    return _change_classes(model, _plain_class_for, "restore_lstm")


class _LeftError(Exception):
    """Why a module is left as it is."""


def _change_classes(model: Model, class_for: Callable[[nn.Module], type[nn.Module] | None], function: str) -> Model:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model must be a torch.nn.Module, got {type(model).__name__}")
    before: list[tuple[nn.Module, type[nn.Module], dict[str, Any]]] = []
    left: dict[str, str] = {}
    try:
        for name, module in model.named_modules():
            own, attributes = type(module), dict(vars(module))
            try:
                target = class_for(module)
                if target is not None:
                    before.append((module, own, attributes))
                    _change_class(module, target)
            except _LeftError as reason:
                left[name] = str(reason)
            except Exception as error:  # from code of the subclass, or from Python: the new class has another layout
                _undo(module, own, attributes)
                left[name] = f"{own.__module__}.{own.__qualname__} raised {type(error).__name__}: {error}"
        if left:
            named = "; ".join(f"{name or 'the model itself'} ({reason})" for name, reason in left.items())
            warnings.warn(f"{function} left these modules as they are: {named}", stacklevel=3)
    except BaseException:
        for each in before:
            _undo(*each)
        raise
    return model


def _change_class(module: nn.Module, target: type[nn.Module]) -> None:
    object.__setattr__(module, "__class__", target)  # whatever a subclass does in its __setattr__
    if isinstance(module, nn.LSTM):  # nn.LSTM has a list of its weights beside the attributes, ours has not
        vars(module).pop("_flat_weights", None)
        module._init_flat_weights()


def _undo(module: nn.Module, own: type[nn.Module], attributes: dict[str, Any]) -> None:
    object.__setattr__(module, "__class__", own)
    vars(module).clear()
    vars(module).update(attributes)


def _fused_class_for(module: nn.Module) -> type[nn.Module] | None:
    """The class that replaces that of a module; None if it is no LSTM of torch's."""
    if isinstance(module, torch.jit.ScriptModule):
        _require(not _runs_an_lstm(module), "TorchScript has compiled it; replace its LSTMs before that")
        return None
    if isinstance(module, LSTM | LSTMCell) or not isinstance(module, nn.LSTM | nn.LSTMCell):
        return None
    _require_its_methods(module)
    _require(not any(map(is_lazy, module.parameters())), "it is lazy; replace it after its first call")
    unsupported = {p.dtype for p in module.parameters()} - set(_DTYPES)
    _require(not unsupported, f"its dtype is {', '.join(map(str, unsupported))}")
    if isinstance(module, nn.LSTM):
        refs = getattr(module, "_flat_weight_refs", ())
        for name, used, ref in zip(module._flat_weights_names, module._flat_weights, refs, strict=False):
            parameter = module._parameters.get(name)
            # nn.LSTM uses the list, unless the attribute has changed since the list was made.
            put_there = parameter is not None and used is not parameter and (ref is None or ref() is parameter)
            _require(not put_there, f"its _flat_weights hold another tensor than its {name}")
    return _made_from(module, _fused_class)


def _plain_class_for(module: nn.Module) -> type[nn.Module] | None:
    """The class that a fused module had; None if it is not fused."""
    if not isinstance(module, LSTM | LSTMCell):
        return None
    _require_its_methods(module)
    return _made_from(module, _plain_class)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _LeftError(otherwise)


def _require_its_methods(module: nn.Module) -> None:
    for name in ("forward", "permute_hidden", *arguments.CHECKS):
        _require(name not in vars(module), f"its {name} is another function, set on the module itself")


def _runs_an_lstm(module: torch.jit.ScriptModule) -> bool:
    methods = map(module._c._get_method, module._c._method_names())
    graphs = [method.inlined_graph for method in methods]
    return any(graph.findAllNodes(kind) for graph in graphs for kind in ("aten::lstm", "aten::lstm_cell"))


def _made_from(module: nn.Module, change: Callable[[type[nn.Module]], type[nn.Module]]) -> type[nn.Module]:
    own = type(module)
    if not parametrize.is_parametrized(module):
        return change(own)
    # torch has given the module a class of its own, with a property for each parametrized tensor. torch takes the first
    # base back when the last parametrization is removed.
    attributes = {name: part for name, part in vars(own).items() if name not in ("__dict__", "__weakref__")}
    return _new_class(own, (change(own.__bases__[0]),), attributes)


def _new_class(own: type[nn.Module], bases: tuple[type, ...], attributes: dict[str, Any]) -> type[nn.Module]:
    metaclass: Any = type(own)
    made: type[nn.Module] = metaclass(own.__name__, bases, attributes)
    return made


def _fused_class(own: type[nn.Module]) -> type[nn.Module]:
    """For a subclass of nn.LSTM one of both that subclass and ours, made on first use."""
    if own in _FUSED:
        return _FUSED[own]
    # Either may put the new class, which nobody wrote, into a registry.
    _require(not _defines(own, "__init_subclass__"), f"{own.__module__}.{own.__qualname__} has an __init_subclass__")
    own_metaclass = _defines(type(own), "__init__") or _defines(type(own), "__new__")
    _require(not own_metaclass, f"{own.__module__}.{own.__qualname__} has a metaclass of its own")
    attributes: dict[str, Any] = {name: getattr(own, name) for name in ("__module__", "__qualname__", "__doc__")}
    attributes["__reduce_ex__"] = _reduce
    fused = _new_class(own, (own, LSTM if issubclass(own, nn.LSTM) else LSTMCell), attributes)
    _FUSED[own], _PLAIN[fused] = fused, own
    return fused


def _defines(kind: type, name: str) -> bool:
    return any(name in vars(each) for each in kind.__mro__ if each.__module__ not in _STANDARD)


def _plain_class(own: type[nn.Module]) -> type[nn.Module]:
    _require(own in _PLAIN, f"{own.__module__}.{own.__qualname__} is a subclass of fusedlstm's own class")
    return _PLAIN[own]


def _reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
    """For pickle and copy: as its own class says, and with that class, since nothing can import the fused one."""
    fused = next(kind for kind in type(self).__mro__ if kind in _PLAIN)
    own = _PLAIN[fused]
    reduced: Any = super(fused, self).__reduce_ex__(protocol)
    function, args, *state = reduced
    function, *args = (own if part is fused else part for part in (function, *args))
    return _recreate, (own, function, *args), *state


def _recreate(own: type[nn.Module], function: Callable[..., nn.Module], *args: Any) -> nn.Module:
    fused = _fused_class(own)
    function, *args = (fused if part is own else part for part in (function, *args))  # type: ignore[assignment]
    return function(*args)
