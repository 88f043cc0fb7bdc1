"""Which gradients a call of backward asks for, among those of the inputs that require one."""

from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

# The last graph task in which autograd.grad() was found to ask for leaves, and those leaves by their ids.
_captured: tuple[int, WeakValueDictionary[int, Tensor]] = -1, WeakValueDictionary()


def asked(ctx: Any, tensors: Sequence[Tensor], needed: Sequence[bool]) -> list[bool]:
    """Whether this call of backward uses the gradients of a node's first inputs, which torch's own nodes ask too.

    ``ctx.needs_input_grad`` says which of them required a gradient in the forward pass. ``autograd.grad(loss, [h])``
    and ``loss.backward(inputs=[h])`` use fewer, and the engine knows which nodes it will run.

    Args:
        ctx: the node whose backward pass runs.
        tensors: its first tensors among the inputs.
        needed: which of them require a gradient.

    Returns:
        A truth value for each tensor, False where ``needed`` is; ``needed`` itself where no engine runs the node.

    Example:
        >>> need_x, need_h0 = asked(ctx, (x, h0), ctx.needs_input_grad[:2])  # in a backward pass
    """
    task = -1 if torch.compiler.is_compiling() else torch._C._current_graph_task_id()
    if task < 0:
        return list(needed)
    edges = zip(ctx.next_functions, tensors, needed, strict=False)
    return [need and node is not None and _will_run(node, tensor, task) for (node, _), tensor, need in edges]


def _will_run(node: Any, tensor: Tensor, task: int) -> bool:
    """Whether the engine will run a node, or return the gradient that goes to it.

    It raises an error for a leaf whose gradient autograd.grad() returns. That takes 40 us, and the steps of a cell have
    the same weights, so such leaves are remembered until the task ends, or as long as they live: checkpoints make
    tensors anew, which may get the id of one before.
    """
    global _captured
    if task == _captured[0] and _captured[1].get(id(tensor)) is tensor:
        return True
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:
        if task != _captured[0]:
            _captured = task, WeakValueDictionary()
        _captured[1][id(tensor)] = tensor
        return True
