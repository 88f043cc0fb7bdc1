"""The operators of fusedlstm._C as torch sees them: typed calls, autograd."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fusedlstm import errors, fakes, flops, memory, needs, reference, tracers

try:
    import fusedlstm._C as _C  # importing it registers the operators
except ImportError as error:
    raise ImportError(
        f"fusedlstm._C must be built for this Python and a torch like {torch.__version__}, got: {error};"
        " run: pip install --no-build-isolation -e . (in the source tree), or leave that folder to use an installed"
        " fusedlstm"
    ) from error

_ops = torch.ops.fusedlstm
# In eager mode: without the Python code of an operator's packet and overload, and in this context without that which
# asks whether a gradient is wanted. A view is made there in half the time, and is no view to autograd.
_inference, _forward, _backward_of_layer = (
    getattr(operator.default, "_op", operator.default)
    for operator in (_ops.lstm_inference, _ops.lstm_forward, _ops.lstm_backward)
)
_Steps = tuple[Tensor | None, Tensor | None, Tensor | None]  # lengths, resets, batch_sizes
_BelowAutograd = torch._C._AutoDispatchBelowADInplaceOrView
_DEVICES = ("cpu", "meta", "cuda") if _C.build_info()["cuda"] else ("cpu", "meta")


def lstm_layer(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    keep_cells: bool = False,
    recompute: bool = False,
    cpu_autocast: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Runs one layer, all its directions, as one operator and one autograd node.

    Under autocast the tensors may differ in dtype, but none may be float64. Each is cast once to autocast's dtype,
    which the results have too, as those of ``nn.LSTM``. On a CPU ``nn.LSTM`` keeps float32 states of packed sequences
    and cells, and float32 cell states of a projection: such a layer computes in float32 here, and only its results are
    cast.

    Args:
        x: input, [T, N, I], float32, float64, bfloat16 or float16. With ``batch_sizes`` it is packed, [S, I]: for each
            step t the entries of the first ``batch_sizes[t]`` sequences, S in all.
        h0: first hidden state of each direction, [D, N, P], dtype and device of ``x``.
        c0: first cell state of each direction, [D, N, H], dtype and device of ``x``.
        weights: as in :func:`fusedlstm.reference.layer`, dtype and device of ``x``.
        lengths: steps of each sequence, int64 [N], 0 to T, on the device of ``x``; None means T for all.
        resets: where a segment begins, bool [T, N], on the device of ``x``; see :func:`fusedlstm.lstm`.
        batch_sizes: of a packed input, int64 [T] on the CPU. Without lengths and resets.
        keep_cells: whether every cell state is returned too.
        recompute: whether the backward pass recomputes gates and cell states instead of keeping them.
        cpu_autocast: whether the layer computes in autocast's dtype on a CPU too.

    Returns:
        y [T, N, D*P], h_n [D, N, P], c_n [D, N, H], and the cell states [T, N, D*H] in the dtype of ``x``, or None.
        y and the cell states are zero past the end of a sequence. Of a packed input they are [S, D*P] and [S, D*H].

    Raises:
        RuntimeError: a shape, dtype or device does not fit, a length lies outside 0..T, a storage was freed, there is
            too little memory (torch.OutOfMemoryError on a GPU), or the device has no kernels.
            On a GPU a length outside 0..T is clamped instead, since checking it would need a host synchronisation.

    Example:
        >>> x, state = torch.randn(5, 2, 3), torch.zeros(1, 2, 4)
        >>> y, h_n, c_n, _ = lstm_layer(x, state, state, [torch.randn(16, 3), torch.randn(16, 4)])
    """
    steps = lengths, resets, batch_sizes
    if not x.is_cpu and x.device.type not in _DEVICES:
        devices = "the CPU or a CUDA GPU" if "cuda" in _DEVICES else "the CPU"
        remedy = "reinstall fusedlstm with a CUDA toolkit" if x.is_cuda else "move the module and its input there"
        raise RuntimeError(
            f"lstm: input must be on {devices}, got {x.device}, for which this fusedlstm has no kernels; {remedy},"
            " or use nn.LSTM (fusedlstm.restore_lstm)"
        )
    try:
        if torch._C._is_any_autocast_enabled() and autocasts(x, h0, c0, *weights):
            return _run_in_lower_precision(x, h0, c0, weights, steps, keep_cells, recompute, cpu_autocast)
        return _run(x, h0, c0, weights, steps, keep_cells, recompute)
    except (AttributeError, RuntimeError) as error:
        errors.explain(error, x, errors.named(h0, c0, weights, *steps))
        raise


def _run_in_lower_precision(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    steps: _Steps,
    keep_cells: bool,
    recompute: bool,
    cpu_autocast: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    _check_memory(x, errors.named(h0, c0, weights))
    kind = x.device.type
    lower = torch.get_autocast_dtype(kind)
    projected = h0.shape[-1] != c0.shape[-1]
    compute, h_dtype, c_dtype = lower, lower, lower
    if kind == "cpu" and (projected or not cpu_autocast):
        compute, c_dtype = torch.float32, torch.promote_types(lower, c0.dtype)
        h_dtype = lower if projected else c_dtype
    with torch.autocast(kind, enabled=False):
        x, h0, c0, *weights = (tensor.to(compute) for tensor in (x, h0, c0, *weights))
        y, h_n, c_n, cells = _run(x, h0, c0, weights, steps, keep_cells, recompute)
    return y.to(h_dtype), h_n.to(h_dtype), c_n.to(c_dtype), None if cells is None else cells.to(c_dtype)


def lstm_step(x: Tensor, h0: Tensor, c0: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Runs one step of one direction: as a layer of one step, without its dimensions of steps and directions.

    Args:
        x: input, [N, I], float32, float64, bfloat16 or float16.
        h0: hidden state before the step, [N, H], dtype and device of ``x``.
        c0: cell state before the step, [N, H], dtype and device of ``x``.
        weights: as in :func:`fusedlstm.reference.layer`, dtype and device of ``x``.

    Returns:
        The hidden state and the cell state after the step, [N, H] each.

    Raises:
        RuntimeError: as in :func:`lstm_layer`.

    Example:
        >>> h, c = lstm_step(torch.randn(2, 3), *torch.zeros(2, 2, 4), [torch.randn(16, 3), torch.randn(16, 4)])
    """
    kernels = x.is_cpu or x.device.type in _DEVICES
    if not kernels or _is_recorded() or transformed() or torch._C._is_any_autocast_enabled():
        _, h, c, _ = lstm_layer(x[None], h0[None], c0[None], weights, cpu_autocast=False)
        return h[0], c[0]
    try:
        if torch.is_grad_enabled() and _require_grad(x, h0, c0, *weights):
            h, c = _apply_step(_may_use_tf32(x), x, h0, c0, *weights)  # type: ignore[no-untyped-call]
            return h, c
        with _BelowAutograd():
            _, h, c = _inference(x[None], h0[None], c0[None], weights, None, None, None, _may_use_tf32(x))
            return h[0], c[0]
    except (AttributeError, RuntimeError) as error:
        errors.explain(error, x, errors.named(h0[None], c0, weights))
        raise


def autocasts(*tensors: Tensor) -> bool:
    """Whether autocast casts these tensors; it casts neither float64 nor integers."""
    kind = tensors[0].device.type
    if kind not in ("cpu", "cuda") or not torch.is_autocast_enabled(kind):
        return False
    return all(tensor.dtype in (torch.float32, torch.bfloat16, torch.float16) for tensor in tensors)


def _run(
    x: Tensor, h0: Tensor, c0: Tensor, weights: Sequence[Tensor], steps: _Steps, keep_cells: bool, recompute: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    if transformed():
        _check_memory(x, errors.named(h0, c0, weights, *steps))
        y, h_n, c_n, cells = reference.layer(x, h0, c0, weights, *steps)
        return y, h_n, c_n, cells if keep_cells else None
    tf32 = _may_use_tf32(x)
    differentiable = torch.is_grad_enabled() and _require_grad(x, h0, c0, *weights)
    inputs = x, h0, c0, weights, *steps, tf32
    # What is recorded may run later, in another grad mode.
    recorded = _is_recorded()
    if not (differentiable or keep_cells or recorded):
        with _BelowAutograd():
            y, h_n, c_n = _inference(*inputs)
        return y, h_n, c_n, None
    # What is saved may never run backwards, and so it keeps no gates.
    saved = recorded and (tracers.is_tracing() or torch.compiler.is_exporting())
    keep_gates = differentiable and not recompute and not saved
    keep = keep_cells or keep_gates, keep_gates
    if differentiable and not recorded:
        settings = *steps, tf32, *keep
        y, h_n, c_n, cells, _gates = _apply_layer(settings, x, h0, c0, *weights)  # type: ignore[no-untyped-call]
    elif any(keep):
        y, h_n, c_n, cells, _gates = _ops.lstm_forward(*inputs, *keep)
    else:
        y, h_n, c_n = _ops.lstm_inference(*inputs)
    return y, h_n, c_n, cells.to(x.dtype) if keep_cells else None


def _check_memory(x: Tensor, others: Iterable[tuple[str, Tensor]]) -> None:
    """For plain torch, which is to read these tensors."""
    if not torch.compiler.is_compiling():
        for name, tensor in (("input", x), *others):
            memory.check(name, tensor)


def transformed() -> bool:
    """Whether torch.func or forward-mode AD is active; our operators support neither, plain torch supports both."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _require_grad(*tensors: Tensor) -> bool:
    return any([tensor.requires_grad for tensor in tensors])  # noqa: C419  a generator takes longer


def _is_recorded() -> bool:
    return torch.compiler.is_compiling() or tracers.is_tracing()


def _may_use_tf32(x: Tensor) -> bool:
    return x.is_cuda and x.dtype == torch.float32 and _tf32_allowed()


def _tf32_allowed() -> bool:
    """nn.LSTM's own switch for TF32, which torch.backends.cudnn.allow_tf32 sets too."""
    return torch.backends.cudnn.rnn.fp32_precision == "tf32"  # type: ignore[attr-defined, no-any-return]


# torch.compiler.assume_constant_result sets the same mark, but importing the compiler for it takes 0.9 s.
_tf32_allowed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """For lstm_forward, and for lstm_inference, which has no cell states and gates among its results."""
    x, h0, c0, weights, lengths, resets, batch_sizes, ctx.allow_tf32, *keep = inputs
    y, _h_n, _c_n, *kept = output
    ctx.set_materialize_grads(False)
    ctx.cells_kept, ctx.gates_kept = keep or (False, False)
    ctx.mark_non_differentiable(*kept[ctx.cells_kept :])
    cells, gates = kept if ctx.gates_kept else (None, None)
    ctx.save_for_backward(x, h0, c0, lengths, resets, batch_sizes, y, cells, gates, *weights)


class _Layer(torch.autograd.Function):
    """lstm_forward with its backward pass, for eager mode.

    `register_autograd` flattens and rebuilds the nested arguments; without that a training step takes 0.1 ms less.
    """

    @staticmethod
    def forward(ctx: Any, settings: tuple[Any, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        x, h0, c0, *weights = tensors
        inputs = (x, h0, c0, weights, *settings)
        with _BelowAutograd():
            output: tuple[Tensor, ...] = _forward(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        _settings, *needed = ctx.needs_input_grad
        *of_states, of_weights = _gradients(ctx, grads[:4], needed[:3], needed[3:])
        return None, *of_states, *of_weights


class _Step(torch.autograd.Function):
    """lstm_forward of one step, with its backward pass: the node of a cell.

    Its inputs and outputs lack the dimensions of steps and directions, since a view of each takes as long as a small
    step, forward and backward.
    """

    @staticmethod
    def forward(ctx: Any, tf32: bool, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        x, h0, c0, *weights = tensors
        inputs = weights, None, None, None, tf32, True, True
        with _BelowAutograd():
            y, h_n, c_n, cells, gates = _forward(x[None], h0[None], c0[None], *inputs)
            h, c = h_n[0], c_n[0]
        ctx.set_materialize_grads(False)
        ctx.allow_tf32, ctx.gates_kept = tf32, True
        ctx.save_for_backward(x, h0, c0, None, None, None, y, cells, gates, *weights)
        return h, c

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor | None, grad_c: Tensor | None) -> tuple[Any, ...]:
        _tf32, *needed = ctx.needs_input_grad
        grads = None, *(None if grad is None else grad[None] for grad in (grad_h, grad_c)), None
        *of_states, of_weights = _gradients(ctx, grads, needed[:3], needed[3:])
        return None, *(None if grad is None else grad[0] for grad in of_states), *of_weights


# Without the code of Function.apply for transforms, which do not come here.
_apply_layer = super(torch.autograd.Function, _Layer).apply
_apply_step = super(torch.autograd.Function, _Step).apply


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    need_x, need_h0, need_c0, need_weights, *others = ctx.needs_input_grad
    return *_gradients(ctx, grads[:4], (need_x, need_h0, need_c0), need_weights), *(None for _ in others)


def _gradients(
    ctx: Any, grads: Sequence[Tensor | None], needed: Sequence[bool], need_weights: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, list[Tensor | None]]:
    """Gradients of x, h0, c0 and the weights from those of y, h_n, c_n and, if they are results, the cell states."""
    x, h0, c0, lengths, resets, batch_sizes, y, cells, gates, *weights = ctx.saved_tensors
    steps = lengths, resets, batch_sizes
    need_x, need_h0, need_c0, *need_weights = needs.asked(ctx, (x, h0, c0, *weights), (*needed, *need_weights))
    if h0.dim() == 2:  # of a step
        x, h0, c0 = x[None], h0[None], c0[None]
    # The gradient will be differentiated itself (create_graph=True), or a transform runs over it.
    batched = [grad is not None and _is_batched(grad) for grad in grads]
    if torch.is_grad_enabled() or transformed() or any(batched):
        _check_memory(x, (*errors.named(h0, c0, weights, *steps), *errors.named_gradients(*grads)))
        grad_x, grad_h0, grad_c0, *grad_weights = _plain_backward(
            grads, (x, h0, c0, *weights), (need_x, need_h0, need_c0, *need_weights), steps
        )
        return grad_x, grad_h0, grad_c0, grad_weights
    inputs = (x, h0, c0, weights, *steps, ctx.allow_tf32)
    need = need_x, need_h0, [int(need) for need in need_weights]
    try:
        if not ctx.gates_kept:
            cells, gates = _ops.lstm_recompute(*inputs, y)
        results = _backward_of_layer(*(*grads, None)[:4], *inputs, y, cells, gates, *need)
    except RuntimeError as error:
        errors.explain(error, x, (*errors.named(h0, c0, weights, *steps), *errors.named_gradients(*grads)))
        raise
    grad_x, grad_h0, grad_c0, grad_weights = results
    return (
        grad_x if need_x else None,
        grad_h0 if need_h0 else None,
        grad_c0 if need_c0 else None,
        [grad if need else None for grad, need in zip(grad_weights, need_weights, strict=True)],
    )


def _plain_backward(
    grads: Sequence[Tensor | None],
    inputs: Sequence[Tensor],
    needed: Sequence[bool],
    steps: _Steps,
) -> list[Tensor | None]:
    """The gradients by plain torch, which can differentiate them and has the rules of all transforms."""

    def run(*changed: Tensor) -> tuple[Tensor, ...]:
        rest = iter(changed)
        x, h0, c0, *weights = (next(rest) if need else tensor for tensor, need in zip(inputs, needed, strict=True))
        outputs = reference.layer(x, h0, c0, weights, *steps)
        return tuple(out for out, grad in zip(outputs, grads, strict=False) if grad is not None)

    wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
    cotangents = tuple(grad for grad in grads if grad is not None)
    if torch._C._are_functorch_transforms_active():
        results = iter(torch.func.vjp(run, *wanted)[1](cotangents))
    else:
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            # With respect to views: an input may be the same tensor as another, or be computed from another, as the
            # states of a cell in a loop are. A path to either input must not count for the other.
            views = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in wanted]
            outputs = run(*views)
        results = iter(torch.autograd.grad(outputs, views, cotangents, create_graph=create_graph, allow_unused=True))
    return [next(results) if need else None for need in needed]


def _is_batched(tensor: Tensor) -> bool:
    """Whether torch.autograd.grad(is_grads_batched=True) runs over this tensor, by a vmap that is not torch.func's."""
    return torch._C._functorch.is_legacy_batchedtensor(tensor)


fakes.register()
for _name in ("lstm_forward", "lstm_inference"):
    torch.library.register_autograd(f"fusedlstm::{_name}", _backward, setup_context=_setup_context)

tracers.after_import("torch.utils.flop_counter", flops.register)
