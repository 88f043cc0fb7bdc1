"""The parts of the agenda, in order of value: what runs on a GPU, for how long, and what its record depends on."""

from collections.abc import Iterator
from itertools import product

from agenda import build
from agenda.part import Part

from benchmarks.cases import SETS

# How benchmarks time: the rows' sources, and those of the other records.
_MEASURING = tuple(f"benchmarks/{name}.py" for name in ("accuracy", "cases", "environment", "measure", "providers"))
_TIERS = ("benchmarks/cases.py", "benchmarks/tiers.py")
_GRAPHS = ("torch_graph", "fusedlstm_graph")

# Of the 24 shapes: where cuDNN has kernels of its own in float16, and what stands for the others.
_FLOAT16 = (
    "t256_n64_h64_l1", "t256_n64_h128_l1", "t256_n64_h160_l1", "t256_n64_h512_l1", "t256_n64_h1024_l1",
    "t1024_n8_h1024_l1", "t35_n20_h1500_l2", "t512_n32_h512_l2", "t256_n128_h1024_l4",
)  # fmt: skip
_FLOAT16_TRAINING = ("t256_n64_h160_l1", "t256_n64_h1024_l1", "t1024_n8_h1024_l1", "t35_n20_h1500_l2")
_TYPICAL = (
    "t35_n20_h200_l2", "t35_n20_h1500_l2", "t256_n64_h64_l1", "t256_n64_h256_l1", "t256_n64_h1024_l1",
    "t256_n128_h1024_l1", "t1024_n8_h1024_l1", "t70_n80_h1152_l3",
)  # fmt: skip
_SHAPES = (
    "t256_n64_h256_l1", "t256_n64_h1024_l1", "t256_n128_h1024_l1", "t1024_n8_h1024_l1", "t256_n64_h2048_l1",
    "t512_n32_h512_l2",
)  # fmt: skip


def _module(name: str, *arguments: str) -> tuple[str, ...]:
    return ("{python}", "-m", name, *arguments)


def _hazard(name: str, title: str, estimate: float, limit: float) -> Part:
    of_states = ("tests/gpu.py", "tests/machines.py", "tests/test_persistent.py")
    sources = ("tests/hazards.py", "tests/hazard_cases.py", "benchmarks/tiers.py", *of_states)
    return Part(f"hazard_{name}", title, _module("tests.hazards", name), estimate, limit, sources)


def _check(name: str, title: str, estimate: float, limit: float, *sources: str) -> Part:
    command = _module("tests.gpu", name, "--results", "{results}", "--commit", "{commit}")
    return Part(name, title, command, estimate, limit, ("tests/gpu.py", *sources), ("verification.json",), "checks")


def _options(name: str, values: tuple[str, ...]) -> list[str]:
    return [word for value in values for word in (f"--{name}", value)]


def _rows(
    name: str, title: str, estimate: float, *, cases: tuple[str, ...], dtypes: tuple[str, ...] = (),
    modes: tuple[str, ...] = (), providers: tuple[str, ...] = _GRAPHS, packages: tuple[str, ...] = (),
) -> Part:  # fmt: skip
    """Rows of rows.csv. What one commit has measured already is skipped: a part that was cut off goes on there."""
    options = [
        *_options("case", cases),
        *_options("dtype", dtypes),
        *_options("mode", modes),
        *_options("provider", providers),
    ]
    command = _module("benchmarks", "run", "--device", "cuda", *options, "--seconds", "0.15", "--resume")
    sources = (*_MEASURING, "benchmarks/engines.py") if packages else _MEASURING
    return Part(f"rows_{name}", title, command, estimate, 2.5 * estimate, sources, ("rows.csv",), packages=packages)


def _shapes(name: str, dtype: str, mode: str, cases: tuple[str, ...]) -> Part:
    title = f"{dtype} {mode} of {len(cases)} shapes, eager and in graphs"
    seconds = 3 if mode == "inference" else 4
    return _rows(f"{name}_{dtype}_{mode}", title, seconds * len(cases), dtypes=(dtype,), modes=(mode,), cases=cases)


def _users(name: str, title: str, seconds: float, *beginnings: str) -> Part:
    """In the dtypes and modes of the users."""
    cases = tuple(case for case in SETS["users_gpu"] if case.startswith(beginnings))
    return _rows(f"users_{name}", title, seconds, cases=cases, providers=(*_GRAPHS, "torch_padded"))


def _tiers(name: str, title: str, estimate: float, *arguments: str) -> Part:
    command = _module("benchmarks", "tiers", "--device", "cuda", *arguments)
    return Part(f"tiers_{name}", title, command, estimate, 3 * estimate, _TIERS, ("tiers.jsonl",))


def _micro(section: str, title: str, estimate: float = 12) -> Part:
    command = _module("benchmarks", "micro", "--section", section)
    sources = ("benchmarks/micro/*",)
    return Part(f"micro_{section}", title, command, estimate, 60, sources, ("micro.jsonl",))


def _language_model(name: str, title: str, *arguments: str) -> Part:
    fixed = ("--device", "cuda", "--fresh", "--out", f"runs/agenda_{name}")
    command = _module("benchmarks.language_model", *fixed, *arguments)
    sources = ("benchmarks/language_model.py", "fusedlstm/lm/*.py")
    packages = ("matplotlib", "safetensors")
    return Part(f"language_model_{name}", title, command, 40, 120, sources, packages=packages)


def _all() -> Iterator[Part]:
    yield Part(
        "build", "the package, for this GPU alone", _module("tests.agenda", "build"), 70, 300,
        required=True, holds=build.is_current,
    )  # fmt: skip
    yield _micro("host", "launch time of the host, the card, its clocks", 10)

    yield _hazard("shared_memory_of_two_threads", "two threads launch one kernel with unequal shared memory", 10, 40)
    yield _hazard("refused_cooperative_launch", "a refused cooperative launch runs stepwise and leaves no error", 8, 30)
    yield _hazard("current_green_context", "a green context that the caller has made current stays so", 8, 30)
    yield _hazard("two_grids", "two cooperative grids of the whole GPU on two streams", 12, 40)
    yield _hazard("nan_states", "NaN in states, lengths and resets, under both signals", 30, 100)
    yield _hazard("first_use_in_a_capture", "the first call of a process is captured in a graph", 20, 60)
    yield _hazard("division_of_many_rows", "divisions of N 64 and 128 at H 1024", 20, 60)
    yield _hazard("hidden_zero", "an operator refuses a hidden size of 0", 6, 30)

    yield _check("test", "the tests on the GPU", 110, 240, "tests/**/*.py", "pyproject.toml", "benchmarks/*.py")
    yield _check("probes", "probes of the emulator on the GPU", 50, 120, "tests/emulation/*")
    yield _check("sanitize", "small cases under compute-sanitizer", 90, 200)

    yield _shapes("own", "float16", "inference", _FLOAT16)
    yield _shapes("own", "float16", "training", _FLOAT16_TRAINING)
    yield _rows(
        "h4096", "H 4096, which has no rows yet", 15, dtypes=("float32", "bfloat16"), modes=("inference", "training"),
        cases=("t64_n64_h4096_l1",),
    )  # fmt: skip
    yield _rows(
        "h2048_training", "float32 training of N 256 and H 2048, which has no row yet", 8, dtypes=("float32",),
        modes=("training",), cases=("t128_n256_h2048_l2",),
    )  # fmt: skip
    for mode, dtype in product(("training", "inference"), ("bfloat16", "float32")):
        yield _shapes("typical", dtype, mode, _TYPICAL)

    padded = "rl_policy", "isaac_rl", "atari_rl"
    yield _users("resets", "rollouts with resets at 0, 1 and 10 %, against segments and padding", 90, *padded)
    yield _users("decoding", "a step of decoding, eager and in graphs", 25, "rnnt_decode", "smiles")
    yield _users("speech", "speech and nanopore reads", 90, "basecall", "diarise", "tts", "icefall")
    yield _users("series", "forecasts, audio, text", 45, "floodhub", "hydrology", "amp", "quant", "ocr")

    for dtype in ("bfloat16", "float32"):
        options = ("--dtype", dtype, *_options("case", _SHAPES))
        yield _tiers(dtype, f"each strategy forced, six shapes in {dtype}", 25, *options)
    for case in ("t256_n64_h1024_l1", "t256_n128_h1024_l1", "t70_n80_h1152_l3"):
        yield _tiers(f"sweep_{case}", f"six divisions of {case} a pass", 20, "--sweep", "6", "--case", case)

    yield _micro("exchange", "exchange between blocks, by flags and by data")
    yield _micro("wgmma", "rate of wgmma with few rows")
    yield _micro("bulk", "bulk copies after a flag")
    yield _micro("multicast", "the same, multicast to two blocks")
    yield _micro("cluster", "writes to the shared memory of a cluster")
    yield _micro("release", "a release by warp and by block")
    yield _micro("activations", "tanh and sigmoid by approximate instructions")

    yield Part(
        "kernels", "kernels against the times that they must reach", _module("benchmarks", "kernels"), 45, 150,
        ("benchmarks/kernels.py", *_TIERS), ("kernels.jsonl",),
    )  # fmt: skip
    yield Part(
        "stalls", "stall reasons of two kernels by instruction, from ncu", _module("benchmarks", "stalls"), 40, 120,
        ("benchmarks/stalls.py",), ("stalls.md",),
    )  # fmt: skip

    yield _language_model("small", "one layer of 256, beside nn.LSTM", "--steps", "600")
    yield _language_model(
        "large", "two layers of 1024, beside nn.LSTM", "--steps", "200", "--hidden-size", "1024", "--num-layers", "2",
        "--batch-size", "64", "--window", "128",
    )  # fmt: skip

    for dtype, mode in product(("float16", "bfloat16", "float32"), ("inference", "training")):
        yield _shapes("all", dtype, mode, tuple(SETS["gpu"]))  # what is left of them

    for provider, dtype, package in (("flashrnn", "bfloat16", "flashrnn"), ("haste", "float32", "haste_pytorch")):
        yield _rows(
            provider, f"two shapes beside {provider}", 50, dtypes=(dtype,), modes=("inference", "training"),
            cases=("t1024_n16_h768_l1", "t1024_n1_h768_l1"), providers=(provider,), packages=(package,),
        )  # fmt: skip


PARTS = tuple(_all())
