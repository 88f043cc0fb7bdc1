"""An LSTM in CUDA graphs, by the same means whichever module it is."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

State = tuple[Tensor, Tensor]
Forward = Callable[[Tensor, State], tuple[Tensor, State]]
Outputs = tuple[Tensor, State]

_WARM_UP = 3  # calls before a capture, as many as torch.cuda.make_graphed_callables makes


def graphed(module: nn.Module) -> Forward:
    """The module in CUDA graphs: one for inference, two for training, one of which is the backward pass.

    They are captured at the first call, with gradients or without as that call is and for its sizes, and so that call
    takes long. What a call returns is overwritten by the next one.

    Args:
        module: on a GPU; takes and returns what nn.LSTM does.
    """
    captured: dict[tuple[bool, torch.Size], Forward] = {}

    def forward(x: Tensor, hx: State) -> Outputs:
        key = torch.is_grad_enabled(), x.shape
        if key not in captured:
            captured[key] = (_training if key[0] else _inference)(module, x, hx)
        return captured[key](x, hx)

    return forward


def _inference(module: nn.Module, x: Tensor, hx: State) -> Forward:
    """One graph, without what torch.cuda.make_graphed_callables adds to each call for autograd."""
    static = x.clone(), hx[0].clone(), hx[1].clone()
    replay, outputs = _capture(lambda: module(static[0], static[1:]))

    def forward(x: Tensor, hx: State) -> Outputs:
        for target, source in zip(static, (x, *hx), strict=True):
            target.copy_(source)
        replay()
        return outputs

    return forward


def _capture(run: Callable[[], Outputs]) -> tuple[Callable[[], Any], Outputs]:
    """What replays a call, and its outputs, which each replay overwrites."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    return graph.replay, outputs


class _Flat(nn.Module):
    """The module with tensors alone for arguments. Its parameters are in the module's order."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, h0: Tensor, c0: Tensor) -> Outputs:
        outputs: Outputs = self.module(x, (h0, c0))
        return outputs


def _training(module: nn.Module, x: Tensor, hx: State) -> Forward:
    # The samples become the graph's inputs: they must want gradients where the arguments of later calls do.
    samples = tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in (x, *hx))
    run = torch.cuda.make_graphed_callables(_Flat(module), samples, num_warmup_iters=_WARM_UP)
    return lambda x, hx: run(x, *hx)
