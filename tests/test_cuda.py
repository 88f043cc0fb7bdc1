"""What only a GPU has: streams, graphs, several devices, TF32, its memory. And how much work a step is."""

import copy

import emulated
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import fusedlstm
from fusedlstm import _C, ops, reference


@pytest.fixture(autouse=True)
def _tf32(_full_float32, monkeypatch):
    """As torch comes."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)


def _module(device, dtype=torch.float32, **options):
    return fusedlstm.LSTM(40, 64, **{"num_layers": 2, "bidirectional": True} | options, device=device, dtype=dtype)


def _results(module, x):
    y, (h_n, c_n) = module(x)
    grads = torch.autograd.grad(y.square().mean() + h_n.sum() + c_n.sum(), [*module.parameters()])
    # Not their graph: it would keep nodes that belong to the stream of this call, of which torch warns on another.
    return [y.detach(), h_n.detach(), c_n.detach(), *grads]


@pytest.mark.skipif(bool(_C.build_info()["cuda"]), reason="this build has the CUDA kernels themselves")
@pytest.mark.parametrize(("proj_size", "per_step"), [(0, 2), (8, 3)], ids=["plain", "projected"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one_direction", "bidirectional"])
def test_launches_per_step(bidirectional, proj_size, per_step):
    """One product and one kernel, for both directions together; a projection is one more product."""
    module = fusedlstm.LSTM(5, 16, bidirectional=bidirectional, proj_size=proj_size)

    def forward_and_backward(T):
        before = emulated.work()
        y, _ = module(torch.randn(T, 3, 5))
        between = emulated.work()
        y.sum().backward()
        return between - before, emulated.work() - between

    with emulated.operators():
        short, long = forward_and_backward(5), forward_and_backward(25)
    assert [more - less for more, less in zip(long, short, strict=True)] == [20 * per_step, 20 * per_step]


@pytest.mark.skipif(bool(_C.build_info()["cuda"]), reason="this build has the CUDA kernels themselves")
def test_what_needs_no_gradient_costs_nothing():
    """Each frozen tensor saves its own product; both weight_hh also save the kernel that gathers the states."""
    module = fusedlstm.LSTM(5, 16, bidirectional=True, proj_size=4)
    x, h0, c0 = torch.randn(6, 3, 5), torch.randn(2, 3, 4), torch.randn(2, 3, 16)
    tensors = {"x": x, "h0": h0, "c0": c0} | dict(module.named_parameters())

    def backward(*frozen):
        for name, tensor in tensors.items():
            tensor.requires_grad_(name not in frozen)
        loss = module(x, (h0, c0))[0].sum()
        before = emulated.work()
        loss.backward()
        return emulated.work() - before

    with emulated.operators():
        everything = backward()
        saved = {name: everything - backward(name) for name in tensors}
        both = everything - backward("weight_hh_l0", "weight_hh_l0_reverse")
    a_product_each = {name for name in tensors if name in ("x", "h0") or name.startswith("weight")}
    assert saved == {name: int(name in a_product_each) for name in tensors}
    assert both == 3


def test_one_kernel_a_step_on_the_gpu(cuda, monkeypatch):
    monkeypatch.setenv("FUSEDLSTM_STRATEGY", "stepwise")
    module, x = _module(cuda, num_layers=1), torch.randn(30, 8, 40, device=cuda)
    _results(module, x)
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiled:
        _results(module, x)
        torch.cuda.synchronize()
    for name in ("lstm_forward_stepwise_kernel", "lstm_backward_stepwise_kernel"):
        assert sum(event.count for event in profiled.key_averages() if name in event.key) == 30


PERSISTENT = ["persistent", "persistent_flags"]


@pytest.mark.parametrize("strategy", PERSISTENT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_one_launch_for_all_steps(dtype, strategy, cuda, monkeypatch):
    """The same results as step by step, to the rounding of the type (float32 is TF32 in both)."""
    module, x = _module(cuda, dtype, num_layers=1), torch.randn(30, 70, 40, device=cuda, dtype=dtype)
    monkeypatch.setenv("FUSEDLSTM_STRATEGY", "stepwise")
    expected = _results(module, x)
    monkeypatch.setenv("FUSEDLSTM_STRATEGY", strategy)
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiled:
        got = _results(module, x)
        torch.cuda.synchronize()
    for name in ("lstm_forward_persistent_kernel", "lstm_backward_persistent_kernel"):
        assert sum(event.count for event in profiled.key_averages() if name in event.key) == 1
    tolerance = 0.02 if dtype == torch.bfloat16 else 0.004
    for ours, stepwise in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, stepwise, rtol=tolerance, atol=tolerance * stepwise.abs().max().item())


@pytest.mark.parametrize("strategy", PERSISTENT)
def test_many_launches_beside_another_stream(strategy, cuda, monkeypatch):
    """Ten thousand persistent launches while another stream keeps the multiprocessors busy: no hang, the same bits."""
    monkeypatch.setenv("FUSEDLSTM_STRATEGY", strategy)
    module, x = _module(cuda, torch.bfloat16, num_layers=1), torch.randn(8, 24, 40, device=cuda, dtype=torch.bfloat16)
    noise, stream = torch.randn(1024, 1024, device=cuda), torch.cuda.Stream()
    with torch.no_grad():
        expected, _ = module(x)
        wrong = torch.zeros((), dtype=torch.int64, device=cuda)
        for index in range(10_000):
            if index % 10 == 0:
                with torch.cuda.stream(stream):
                    torch.mm(noise, noise)
            wrong += (module(x)[0] != expected).sum()
    assert wrong.item() == 0


def test_the_current_stream_is_used(cuda):
    """The input arrives on a side stream late enough for work on any other stream to miss it."""
    module, x = _module(cuda), torch.randn(20, 8, 40, device=cuda)
    expected = _results(module, x)
    late = torch.zeros_like(x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        got = _results(module, late)
    stream.synchronize()
    assert all(map(torch.equal, expected, got))


def test_two_streams_at_once(cuda):
    modules = [_module(cuda) for _ in range(2)]
    x = torch.randn(50, 8, 40, device=cuda)
    expected = [_results(module, x) for module in modules]
    streams = [torch.cuda.Stream() for _ in modules]
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream())
    for _ in range(5):
        got = []
        for module, stream in zip(modules, streams, strict=True):
            with torch.cuda.stream(stream):
                got.append(_results(module, x))
        torch.cuda.synchronize()
        for ours, theirs in zip(expected, got, strict=True):
            assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("strategy", ["stepwise", *PERSISTENT])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_graph_of_forward_and_backward(dtype, strategy, cuda, monkeypatch):
    monkeypatch.setenv("FUSEDLSTM_STRATEGY", strategy)
    module, x = _module(cuda, dtype), torch.randn(20, 8, 40, device=cuda, dtype=dtype)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            _results(module, x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _results(module, x)
    for _ in range(3):
        x.copy_(torch.randn_like(x))
        graph.replay()
        for got, expected in zip(captured, _results(module, x), strict=True):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("strategy", ["stepwise", *PERSISTENT])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_graphed_callables_train(dtype, strategy, cuda, monkeypatch):
    """torch.cuda.make_graphed_callables: a graph for the forward pass, one for the backward pass."""
    monkeypatch.setenv("FUSEDLSTM_STRATEGY", strategy)

    def inputs():
        return torch.randn(20, 8, 40, device=cuda, dtype=dtype, requires_grad=True)

    def outputs_and_gradients(module, x):
        y, (h_n, c_n) = module(x)
        loss = y.square().mean() + h_n.sum() + c_n.sum()
        return [y.detach(), h_n.detach(), c_n.detach(), *torch.autograd.grad(loss, [x, *module.parameters()])]

    eager = _module(cuda, dtype)
    graphed = torch.cuda.make_graphed_callables(copy.deepcopy(eager), (inputs(),))
    for _ in range(3):
        x = inputs()
        got, expected = (outputs_and_gradients(module, x) for module in (graphed, eager))
        for ours, right in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, right)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_no_wait_for_the_device(cuda):
    module, x = _module(cuda), torch.randn(20, 8, 40, device=cuda)
    lengths = torch.tensor([20, 3, 0, 7, 20, 1, 2, 5], device=cuda)
    state = [torch.zeros(2, 8, 64, device=cuda) for _ in range(2)]
    weights = [getattr(module, name) for name in module._flat_weights_names[:8]]
    _results(module, x)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        _results(module, x)
        ops.lstm_layer(x, *state, weights, lengths)[0].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("proj_size", [0, 24], ids=["plain", "projected"])
@pytest.mark.parametrize("strategy", ["stepwise", *PERSISTENT])
def test_repeats_bit_for_bit(dtype, strategy, proj_size, cuda, monkeypatch):
    monkeypatch.setenv("FUSEDLSTM_STRATEGY", strategy)
    module, x = _module(cuda, dtype, proj_size=proj_size), torch.randn(20, 33, 40, device=cuda, dtype=dtype)
    expected = _results(module, x)
    for _ in range(100):
        assert all(map(torch.equal, expected, _results(module, x)))


def test_tf32_follows_the_switch_of_cudnn(cuda, monkeypatch):
    module = fusedlstm.LSTM(256, 256, device=cuda)
    x = torch.randn(20, 16, 256, device=cuda)
    state = [torch.zeros(1, 16, 256, device=cuda) for _ in range(2)]
    truth, _, _, _ = reference.layer(
        x.double(), *(tensor.double() for tensor in state), [p.double() for p in module.parameters()]
    )
    errors = {}
    for allowed in (True, False):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        for matmul in ("highest", "high"):  # torch's own products have a switch of their own
            torch.set_float32_matmul_precision(matmul)
            errors[allowed, matmul] = (module(x)[0].double() - truth).abs().max().item()
    torch.set_float32_matmul_precision("highest")
    assert errors[True, "highest"] > 20 * errors[False, "highest"]
    assert errors[True, "highest"] == errors[True, "high"]
    assert errors[False, "highest"] == errors[False, "high"]


def test_memory_is_returned(cuda):
    module, x = _module(cuda), torch.randn(50, 8, 40, device=cuda)
    _results(module, x)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(10):
        _results(module, x)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before


def test_the_device_of_the_input_is_used(cuda):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU only")
    module = _module(cuda)
    x = torch.randn(20, 8, 40)
    expected = _results(module, x.to(cuda))
    second = torch.device("cuda", 1)
    module.to(second)
    got = _results(module, x.to(second))
    assert torch.cuda.current_device() == 0
    for ours, theirs in zip(expected, got, strict=True):
        assert theirs.device == second
        torch.testing.assert_close(theirs.cpu(), ours.cpu())


@pytest.mark.parametrize("device", ["emulated", "cuda"], indirect=True)
def test_lengths_out_of_range_are_cut(device):
    """To refuse them, as the CPU does, would take a wait for the device."""
    x, state = torch.randn(4, 3, 5, device=device), torch.randn(2, 3, 8, device=device)
    weights = [torch.randn(shape, device=device) for shape in ((32, 5), (32, 8)) * 2]
    wild = torch.tensor([9, -2, 4], device=device)
    got = torch.ops.fusedlstm.lstm_forward(x, state, state, weights, wild, None, None, False, True, True)
    expected = torch.ops.fusedlstm.lstm_forward(
        x, state, state, weights, wild.clamp(0, 4), None, None, False, True, True
    )
    for ours, right in zip(got[:4], expected[:4], strict=True):
        assert torch.equal(ours, right)
    rest = (got[0], got[3], got[4], True, True, [1] * 4)
    grads = torch.ops.fusedlstm.lstm_backward(*got[:4], x, state, state, weights, wild, None, None, False, *rest)
    right = torch.ops.fusedlstm.lstm_backward(
        *got[:4], x, state, state, weights, wild.clamp(0, 4), None, None, False, *rest
    )
    assert all(map(torch.equal, [*grads[:3], *grads[3]], [*right[:3], *right[3]]))
