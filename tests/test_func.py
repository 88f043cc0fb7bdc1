"""torch.func and forward-mode AD, which run in plain torch, and second derivatives as models use them."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vmap

import fusedlstm

# torch's forward-mode AD scripts its decompositions when it is first used.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:`torch.jit.script` is deprecated:{category}")
    for category in ("DeprecationWarning", "FutureWarning")  # of torch 2.13 and 2.14
]

OPTIONS = {
    "plain": {},
    "all": {"num_layers": 2, "bidirectional": True, "proj_size": 2},
    "recompute": {"bidirectional": True, "recompute": True},
}


def _module(device, **options):
    return fusedlstm.LSTM(3, 4, **options, dtype=torch.float64, device=device)


def _random(*shape, device):
    return torch.randn(*shape, dtype=torch.float64, device=device)


def _loss(module, parameters, x, **options):
    y, (_, c_n) = functional_call(module, parameters, (x,), options)
    return y.square().sum() + c_n.sum()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_vmap_over_sequences(options, device):
    module, x = _module(device, **options), _random(6, 5, 2, 3, device=device)
    y, (h_n, c_n) = vmap(module)(x)
    for index, (one_y, (one_h, one_c)) in enumerate(map(module, x)):
        for whole, one in ((y, one_y), (h_n, one_h), (c_n, one_c)):
            torch.testing.assert_close(whole[index], one)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_of_each_sample(options, device):
    module, x = _module(device, **options), _random(6, 5, 1, 3, device=device)
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    grads = vmap(grad(lambda parameters, x: _loss(module, parameters, x)), (None, 0))(parameters, x)
    for index, sample in enumerate(x):
        loss = _loss(module, dict(module.named_parameters()), sample)
        for name, expected in zip(parameters, torch.autograd.grad(loss, list(module.parameters())), strict=True):
            torch.testing.assert_close(grads[name][index], expected)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_an_ensemble(options, device):
    modules = [_module(device, **options) for _ in range(3)]
    x = _random(5, 2, 3, device=device)
    base = copy.deepcopy(modules[0]).to("meta")
    y, _ = vmap(lambda *state: functional_call(base, state, (x,)))(*stack_module_state(modules))
    for whole, module in zip(y, modules, strict=True):
        torch.testing.assert_close(whole, module(x)[0])


def test_lengths_and_resets_differ_among_the_sequences(device):
    module, x = _module(device, bidirectional=True), _random(6, 5, 2, 3, device=device)
    lengths = torch.randint(0, 6, (6, 2), device=device)
    resets = torch.rand(6, 5, 2, device=device) < 0.3
    y, _ = vmap(lambda x, n, m: module(x, lengths=n, resets=m))(x, lengths, resets)
    for whole, *one in zip(y, x, lengths, resets, strict=True):
        torch.testing.assert_close(whole, module(one[0], lengths=one[1], resets=one[2])[0])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_forward_mode(options, device):
    """Against finite differences, and through torch.func.jvp against the vector-Jacobian products."""
    module = _module(device, **options)
    x = _random(3, 2, 3, device=device).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: module(x)[0], x, check_forward_ad=True, check_backward_ad=False)
    tangent = torch.randn_like(x)
    y, y_tangent = jvp(lambda x: module(x)[0], (x.detach(),), (tangent,))
    cotangent = torch.randn_like(y)
    (x_grad,) = torch.autograd.grad(module(x)[0], x, cotangent)
    torch.testing.assert_close((x_grad * tangent).sum(), (y_tangent * cotangent).sum())


def _without_cudnn(device):
    """Without cuDNN, which has no second derivatives."""
    return torch.backends.cudnn.flags(enabled=False) if device.type == "cuda" else contextlib.nullcontext()


def test_hessian_vector_product(device):
    """Reverse over reverse, forward over reverse, and nn.LSTM's own."""
    ours, torchs = _module(device), nn.LSTM(3, 4, dtype=torch.float64, device=device)
    torchs.load_state_dict(ours.state_dict())
    x = _random(4, 2, 3, device=device)
    parameters = dict(ours.named_parameters())
    vector = {name: torch.randn_like(p) for name, p in parameters.items()}

    def reverse_over_reverse(module):
        leaves = dict(module.named_parameters())
        first = torch.autograd.grad(_loss(module, leaves, x), list(leaves.values()), create_graph=True)
        return torch.autograd.grad(first, list(leaves.values()), list(vector.values()))

    detached = {name: p.detach() for name, p in parameters.items()}
    _, forward_over_reverse = jvp(grad(lambda p: _loss(ours, p, x)), (detached,), (vector,))
    with _without_cudnn(device):
        expected = reverse_over_reverse(torchs)
    for way in (reverse_over_reverse(ours), forward_over_reverse.values()):
        for product, true in zip(way, expected, strict=True):
            torch.testing.assert_close(product, true)


def test_hessian(device):
    module, x = _module(device), _random(3, 1, 3, device=device)
    matrix = hessian(lambda x: _loss(module, dict(module.named_parameters()), x))(x).reshape(9, 9)
    expected = torch.autograd.functional.hessian(lambda x: _loss(module, dict(module.named_parameters()), x), x)
    torch.testing.assert_close(matrix, expected.reshape(9, 9))
    torch.testing.assert_close(matrix, matrix.T)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_batches_of_gradients(options, device):
    """vmap over the backward pass of a graph that exists, as the vectorized Jacobian does."""
    module, x = _module(device, **options), _random(4, 2, 3, device=device).requires_grad_()
    y, (h_n, c_n) = module(x)
    inputs = [x, *module.parameters()]
    cotangents = [_random(6, *tensor.shape, device=device) for tensor in (y, h_n, c_n)]

    def gradients(*cotangents, **how):
        return torch.autograd.grad((y, h_n, c_n), inputs, cotangents, retain_graph=True, **how)

    expected = [torch.stack(each) for each in zip(*map(gradients, *cotangents), strict=True)]
    batched = gradients(*cotangents, is_grads_batched=True)
    assert not any(grad.requires_grad for grad in batched)
    torch.testing.assert_close(batched, tuple(expected))
    torch.testing.assert_close(vmap(gradients)(*cotangents), tuple(expected))


@pytest.mark.parametrize("function", ["jacobian", "hessian"])
def test_vectorized(function, device):
    module, x = _module(device, bidirectional=True), _random(3, 2, 3, device=device)
    lengths = torch.tensor([2, 3], device=device)

    def results(x):
        y, (_, c_n) = module(x, lengths=lengths)
        return y if function == "jacobian" else y.square().sum() + c_n.sum()

    of = getattr(torch.autograd.functional, function)
    torch.testing.assert_close(of(results, x, vectorize=True), of(results, x))


class Penalised(nn.Module):
    """Results whose LSTM gets inputs that depend on each other."""

    def __init__(self, how):
        super().__init__()
        options = {"bidirectional": True, "num_layers": 2} if how == "tied" else {}
        self.how, self.lstm, self.cell = how, nn.LSTM(4, 4, **options), nn.LSTMCell(4, 4)
        if how == "tied":
            self.lstm = nn.LSTM(8, 4, **options)
            for name in ("weight_ih_l0_reverse", "weight_ih_l1", "weight_ih_l1_reverse"):
                setattr(self.lstm, name, self.lstm.weight_ih_l0)

    def forward(self, x):
        if self.how == "cell_loop":
            h = c = x.new_zeros(x.shape[1], 4)
            for step in x:
                h, c = self.cell(step, (h, c))
            return h
        if self.how == "tied":
            return self.lstm(torch.cat([x, x], 2))[0]
        hx = {"carried": self.lstm(x)[1], "same": (x[:1], x[:1]), "from_input": (x[:1].sin(), x[-1:].cos())}[self.how]
        return self.lstm(x, hx)[0]


@pytest.mark.parametrize("how", ["carried", "same", "from_input", "tied", "cell_loop"])
def test_inputs_that_depend_on_each_other(how, device):
    """Every path to an input counts once: in a second derivative, in a batch of gradients and in a tangent."""
    plain = Penalised(how).to(device, torch.float64)
    fused = fusedlstm.replace_lstm(copy.deepcopy(plain))
    x, batch = _random(3, 2, 4, device=device), _random(5, 1, device=device)

    def derivatives(model):
        leaf = x.clone().requires_grad_()
        wanted = [leaf, *(model.cell if how == "cell_loop" else model.lstm).parameters()]
        first = torch.autograd.grad(model(leaf).square().sum(), wanted, create_graph=True)
        second = torch.autograd.grad(sum(grad.square().sum() for grad in first), wanted)
        y = model(leaf)
        cotangents = batch.view(5, *[1] * y.dim()).expand(5, *y.shape) * y.detach()
        batched = torch.autograd.grad(y, wanted, cotangents, is_grads_batched=True, retain_graph=True)
        return (
            first,
            second,
            batched,
            jvp(lambda g: torch.autograd.grad(y, leaf, g)[0], (y.detach(),), (cotangents[0],)),
        )

    with _without_cudnn(device):
        torch.testing.assert_close(derivatives(fused), derivatives(plain))


def test_weights_frozen_after_the_forward_pass(device):
    module, x = _module(device), _random(3, 2, 3, device=device).requires_grad_()
    y, _ = module(x)
    expected = torch.autograd.grad(y.sum(), x, retain_graph=True)
    module.requires_grad_(False)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x, create_graph=True), expected)
