"""How torch's tracers see the modules: Dynamo, torch.fx, torch.jit.trace and the ONNX exporter that is built on it."""

import contextlib
import functools
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from typing import Any, NoReturn

import torch
from torch import fx, nn
from torch.fx.experimental import proxy_tensor

_BUILDER = "torch._dynamo.variables.builder"


def let_dynamo_trace(kind: type[nn.Module]) -> None:
    """Makes torch.compile trace modules of a class although they are an ``nn.LSTM``.

    ``VariableBuilder.wrap_module`` of Dynamo refuses an ``nn.LSTM`` unless the option ``allow_rnn`` is on. For a module
    of ``kind``, the option is on during that call. If a torch to come has no such method or option, Dynamo does with
    the module what it does with an ``nn.LSTM``.

    Args:
        kind: the class whose modules Dynamo may trace.
    """

    def change(builder: Any) -> None:
        wrap = getattr(getattr(builder, "VariableBuilder", None), "wrap_module", None)
        if wrap is None or not hasattr(torch._dynamo.config, "allow_rnn"):
            return

        @functools.wraps(wrap)
        def wrap_module(self: Any, value: nn.Module, *args: Any, **kwargs: Any) -> Any:
            with torch._dynamo.config.patch(allow_rnn=True) if isinstance(value, kind) else contextlib.nullcontext():
                return wrap(self, value, *args, **kwargs)

        builder.VariableBuilder.wrap_module = wrap_module

    after_import(_BUILDER, change)  # importing the compiler takes a second


def after_import(name: str, call: Callable[[Any], None]) -> None:
    """Calls a function with a module: now, or once somebody else has imported it.

    Args:
        name: the module's full name.
        call: the function.
    """
    if name in sys.modules:
        call(sys.modules[name])
    else:
        sys.meta_path.insert(0, _AfterImport(name, call))


class _AfterImport:
    """An import hook that calls a function with the module of a name once it has been imported."""

    def __init__(self, name: str, call: Callable[[Any], None]) -> None:
        self._name, self._call = name, call

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                self._call(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def make_fx_leaves(*kinds: type[nn.Module]) -> None:
    """Makes ``torch.fx.symbolic_trace`` record the call of a module as one node, as that of a module of ``torch.nn``.

    The tracers of torch take a module for a leaf by the name of its Python module, and hand any other its ``forward``.
    A subclass that has a ``forward`` of its own is no leaf.

    Args:
        kinds: the classes whose modules are leaves.
    """
    call = fx.Tracer.call_module

    @functools.wraps(call)
    def call_module(self: Any, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        def leaf(*args: Any, **kwargs: Any) -> Any:
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)

        # make_fx records what a module does; torch.export is built on it.
        is_leaf = isinstance(m, kinds) and not isinstance(self, proxy_tensor.PythonKeyTracer)
        if is_leaf and getattr(m.forward, "__func__", None) in [kind.forward for kind in kinds]:
            forward = leaf
        return call(self, m, forward, args, kwargs)

    fx.Tracer.call_module = call_module  # type: ignore[method-assign]


def refuse_script(name: str) -> NoReturn:
    """Says what to do when ``torch.jit.script`` asks a module for another one to compile.

    It would leave that other one in the model, so none is given.
    """
    raise NotImplementedError(
        f"torch.jit.script does not compile fusedlstm.{name}; make the LSTMs torch's before, with"
        " fusedlstm.restore_lstm(model), or use torch.export or torch.jit.trace"
    )


def is_tracing() -> bool:
    """Whether ``torch.jit.trace`` is recording."""
    return torch._C._get_tracing_state() is not None


def in_old_onnx_export() -> bool:
    """Whether ``torch.onnx.export(..., dynamo=False)`` is recording, which knows torch's own operators alone."""
    return is_tracing() and "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export()


@contextlib.contextmanager
def sizes_may_be_compared() -> Iterator[None]:
    """Without the warnings of ``torch.jit.trace`` about sizes that Python compares, which torch omits for nn.LSTM too.

    The comparisons are checks. A size that the trace makes a constant is one that the module's parameters fix.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit._trace.TracerWarning)
        yield
