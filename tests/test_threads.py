"""Threads on the CPU: any number of them, from several Python threads, after a fork, without OpenMP: the same bits."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import fusedlstm

ROOT = Path(__file__).parent.parent
# Steps, rows, units, directions: units shared, rows shared, both directions at once, one step, few rows whose weights
# are read unpacked in both passes, and units that do not divide, shared by rows.
SHAPES = [(12, 3, 96, 1), (6, 40, 48, 1), (9, 4, 64, 2), (1, 2, 160, 1), (2, 5, 190, 2), (3, 60, 300, 1)]


@pytest.fixture(autouse=True)
def _same_threads_afterwards():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def results(shape, seed=0):
    """Outputs, states and every gradient of an LSTM with fixed weights."""
    T, N, H, D = shape
    generator = torch.Generator().manual_seed(seed)
    module = fusedlstm.LSTM(24, H, bidirectional=D == 2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) * 0.4 - 0.2)
    x = torch.randn(T, N, 24, generator=generator).requires_grad_()
    y, (h_n, c_n) = module(x)
    loss = y.square().sum() + h_n.sum() + c_n.sum()
    return [y.detach(), h_n.detach(), c_n.detach(), *torch.autograd.grad(loss, [x, *module.parameters()])]


def assert_same(ours, expected):
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_number_of_threads(shape):
    torch.set_num_threads(1)
    alone = results(shape)
    for count in (2, 4, 3, 2):  # more than there are cores, and a team that grows and shrinks
        torch.set_num_threads(count)
        assert_same(results(shape), alone)


def test_python_threads_at_once():
    torch.set_num_threads(2)
    expected = [results(SHAPES[i % len(SHAPES)], seed=i) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = pool.map(lambda i: results(SHAPES[i % len(SHAPES)], seed=i), range(8))
            for ours, wanted in zip(found, expected, strict=True):
                assert_same(ours, wanted)


def test_thread_count_changed_by_another_thread_meanwhile():
    expected, stop = results(SHAPES[0]), threading.Event()

    def change():
        while not stop.is_set():
            for count in (1, 2, 4):
                torch.set_num_threads(count)

    changer = threading.Thread(target=change)
    changer.start()
    try:
        for _ in range(30):
            assert_same(results(SHAPES[0]), expected)
    finally:
        stop.set()
        changer.join()


class _Encoded(Dataset):
    """Each item is the output of an LSTM that runs in the worker."""

    def __init__(self, module):
        self.module = module

    def __len__(self):
        return 4

    def __getitem__(self, index):
        x = torch.full((20, 8, 64), float(index))
        with torch.no_grad():
            return self.module(x)[0]


def test_forked_worker_of_a_data_loader():
    torch.set_num_threads(2)
    data = _Encoded(fusedlstm.LSTM(64, 96))
    expected = [data[i] for i in range(4)]  # the parent's team exists when the worker is forked
    loader = DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=60)
    assert_same(list(loader), expected)


def script(code, **environment):
    """Runs Python with a deadline, so that a hang is a failure."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_forked_process_with_as_many_threads():
    # A DataLoader's worker has one thread of torch's; a bare fork still has its parent's number.
    run = script(
        "import os, torch, fusedlstm\n"
        "torch.set_num_threads(2)\n"
        "m, x = fusedlstm.LSTM(64, 96), torch.randn(20, 8, 64)\n"
        "with torch.no_grad(): before = m(x)[0]\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    with torch.no_grad(): same = torch.equal(m(x)[0], before)\n"
        "    os._exit(0 if same else 3)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    assert run.stdout.strip() == "0", run.stderr


def test_a_smaller_team_than_asked_for():
    code = (
        "import torch, zlib, tests.test_threads as t\n"  # torch's own sums depend on the number of threads
        "torch.set_num_threads(4)\n"
        "print([zlib.crc32(v.detach().double().numpy().tobytes()) for s in t.SHAPES for v in t.results(s)])"
    )
    runs = [script(code, OMP_THREAD_LIMIT=limit) for limit in ("1", "3", "8")]
    assert runs[0].stdout, runs[0].stderr
    assert runs[0].stdout == runs[1].stdout == runs[2].stdout


@pytest.mark.parametrize("openmp", [["-fopenmp"], ["-Wno-unknown-pragmas"]], ids=["openmp", "without"])
def test_claims(tmp_path, openmp):
    sources = [str(ROOT / "tests" / "team.cpp"), str(ROOT / "csrc" / "cpu" / "team.cpp")]
    flags = ["-std=c++20", "-O1", "-Wall", "-Werror", *openmp]
    subprocess.run(["g++", *flags, *sources, "-o", str(tmp_path / "team"), "-pthread"], check=True)
    run = subprocess.run([str(tmp_path / "team")], check=False, timeout=120, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_beside_busy_processes():
    # Right, and without a hang, when others hold every core; how much slower is a matter of the benchmarks.
    expected = results(SHAPES[0])
    torch.set_num_threads(2)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        for _ in range(10):
            assert_same(results(SHAPES[0]), expected)
    finally:
        for process in busy:
            process.kill()
            process.wait()
