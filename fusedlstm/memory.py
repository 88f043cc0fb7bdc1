"""Whether a tensor has memory for its shape; FSDP and offloading free the storages of tensors that still exist."""

import torch
from torch import Tensor

from fusedlstm.errors import ArgumentError


def check(name: str, tensor: Tensor) -> None:
    """Refuses a tensor that reaches past its storage, before torch's own operations read from it, which do not ask.

    Our operators ask themselves. Compilers and tracers see no memory, and a subclass of its own dispatch has none.

    Args:
        name: what an error calls the tensor.
        tensor: any tensor, those of ``torch.func`` transforms included.

    Raises:
        ArgumentError: the storage ends before the last element.

    Example:
        >>> x = torch.randn(3)
        >>> x.untyped_storage().resize_(0)
        >>> memory.check("input", x)  # raises
    """
    if torch.compiler.is_compiling():
        return
    try:
        given = tensor.untyped_storage().nbytes()
    except RuntimeError:
        # A tensor of a transform has another inside. Sparse and nested tensors have no storage of their own.
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            check(name, torch._C._functorch.get_unwrapped(tensor))
        return
    if tensor.is_contiguous():
        elements = tensor.numel()
    else:
        elements = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    needed = (tensor.storage_offset() + elements) * tensor.element_size()
    if type(needed) is not int or type(given) is not int or needed <= given or tensor.numel() == 0:
        return
    if torch._C._dispatch_keys(tensor).has(torch._C.DispatchKey.Python):
        return
    raise ArgumentError(
        f"lstm: {name} must have a storage of at least {needed} bytes, got one of {given}; it was freed or shrunk:"
        " restore it before the call"
    )
