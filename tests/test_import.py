"""What `import fusedlstm` costs beyond torch's own import, and which libraries it loads."""

import subprocess
import sys

import pytest


def _run(script):
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


def test_importing_takes_less_than_50_ms():
    script = "import time, torch; begin = time.process_time(); import fusedlstm; print(time.process_time() - begin)"
    # Time of the processor, since others may be at work; they may have its caches too, so the fastest import counts.
    assert any(float(_run(script)) < 0.05 for _ in range(5))


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's list of loaded libraries")
def test_importing_loads_no_second_openmp():
    """Its threads would compete with torch's and ignore torch.set_num_threads."""
    script = (
        "import {}; maps = open('/proc/self/maps').read().split()\n"
        "print(sorted({{word for word in maps if any(name in word for name in ('gomp', 'libomp', 'iomp'))}}))"
    )
    assert "omp" in _run(script.format("torch"))
    assert _run(script.format("fusedlstm")) == _run(script.format("torch"))


def test_importing_leaves_the_compiler_alone():
    """It takes a second to load; what is changed in it is changed when something else imports it."""
    script = "import sys, {}; print(sorted({{'torch._dynamo', 'torch._inductor', 'torch.onnx'}} & set(sys.modules)))"
    assert _run(script.format("fusedlstm")) == _run(script.format("torch")) == "[]\n"
