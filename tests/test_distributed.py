"""torch's distributed training of models whose LSTMs were swapped: two processes give the gradients of one."""

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fusedlstm

PROCESSES = 2


class Layer(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.lstm = nn.LSTM(size, size, bidirectional=True, proj_size=size // 2)
        self.norm = nn.LayerNorm(size)

    def forward(self, x):
        return x + self.norm(self.lstm(x)[0])


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Layer(8) for _ in range(3))
        self.cell = nn.LSTMCell(8, 5)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.cell(x[-1])[0]


def _model_and_batch(device="cpu"):
    torch.manual_seed(7)
    return fusedlstm.replace_lstm(Model()).to(device), torch.randn(6, 4, 8).to(device)


def _train(model, call, x, steps=2):
    """Gradients of the first step, and the parameters after the last."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(steps):
        optimizer.zero_grad()
        call(x).square().mean().backward()
        if step == 0:
            gradients = [_whole(parameter.grad).clone() for parameter in model.parameters()]
        optimizer.step()
    return gradients, [_whole(parameter).detach() for parameter in model.parameters()]


def _whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, distributed.tensor.DTensor) else tensor


def _join(rank, store, backend="gloo", processes=PROCESSES):
    torch.set_num_threads(1)
    distributed.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=processes)


def _assert_one_process_gives(results, device="cpu"):
    model, x = _model_and_batch(device)
    for got, expected in zip(results, _train(model, model, x), strict=True):
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other)


def _data_parallel(rank, store):
    _join(rank, store)
    model, x = _model_and_batch()
    results = _train(model, DistributedDataParallel(model), x.chunk(PROCESSES, 1)[rank])
    _assert_one_process_gives(results)
    distributed.destroy_process_group()


def _fully_sharded(rank, store):
    _join(rank, store)
    model, x = _model_and_batch()
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    local = sum(parameter.to_local().numel() for parameter in model.parameters())
    assert local <= 0.6 * sum(parameter.numel() for parameter in model.parameters())
    results = _train(model, model, x.chunk(PROCESSES, 1)[rank])
    _assert_one_process_gives(results)
    distributed.destroy_process_group()


def _data_parallel_on_a_gpu(rank, store):
    _join(rank, store, "nccl", processes=1)
    model, x = _model_and_batch("cuda")
    _assert_one_process_gives(_train(model, DistributedDataParallel(model), x), "cuda")
    distributed.destroy_process_group()


@pytest.mark.parametrize("worker", [_data_parallel, _fully_sharded])
def test_two_processes_give_the_gradients_of_one(worker, tmp_path):
    torch.multiprocessing.spawn(worker, args=(tmp_path / "store",), nprocs=PROCESSES)


def test_nccl(cuda, tmp_path):
    """One process, since NCCL needs a GPU for each."""
    torch.multiprocessing.spawn(_data_parallel_on_a_gpu, args=(tmp_path / "store",), nprocs=1)
