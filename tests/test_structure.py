"""The rules of the layout: who may import whom, and what each kind of source may know (CONTRIBUTING.md)."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fusedlstm

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".h", ".inl", ".cu", ".cuh"))
MODULES = sorted(path for path in (ROOT / "fusedlstm").rglob("*.py"))

# What each module of the package may import from it; the compiled module _C is at the bottom.
MAY_IMPORT = {
    "__init__": {"functional", "modules", "startup", "swap"},
    "__main__": {"lm", "startup"},
    "lm": {"info", "lm", "modules"},
    "info": {"_C", "__init__"},
    "onnx": {"ops"},
    "swap": {"arguments", "modules"},
    "modules": {"arguments", "errors", "functional", "memory", "ops", "tracers"},
    "arguments": {"errors", "memory", "ops", "packing"},
    "functional": {"memory", "ops", "packing"},
    "ops": {"_C", "errors", "fakes", "flops", "memory", "needs", "reference", "tracers"},
    "fakes": {"errors"},
    "memory": {"errors"},
    "errors": set(),
    "flops": set(),
    "needs": set(),
    "packing": {"errors", "tracers"},
    "reference": set(),
    "startup": set(),
    "tracers": set(),
}


def _role(path: Path) -> str:
    return path.relative_to(ROOT / "fusedlstm").with_suffix("").parts[0]


def _imports(path: Path) -> set[str]:
    """Names of the modules a file imports, `from fusedlstm import x` as fusedlstm.x."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            inner = node.module == "fusedlstm"
            names |= {f"fusedlstm.{alias.name}" for alias in node.names} if inner else {node.module}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    inner = {name for name in _imports(path) if name.split(".")[0] == "fusedlstm"}
    used = {name.split(".")[1] if "." in name else "__init__" for name in inner}
    assert used <= MAY_IMPORT[_role(path)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_package_needs_torch_alone(path):
    extras = {"lm": {"numpy", "safetensors", "tqdm"}, "onnx": {"onnxscript"}}.get(_role(path), set())
    outer = {name.split(".")[0] for name in _imports(path)} - {"fusedlstm"}
    assert outer <= set(sys.stdlib_module_names) | {"torch"} | extras


@pytest.mark.parametrize("folder", ["fusedlstm", "benchmarks"])
def test_nothing_outside_the_tests_imports_them(folder):
    """A source distribution comes without tests."""
    own = {path.stem for path in (ROOT / "tests").rglob("*.py")} | {"tests"}
    for path in (ROOT / folder).rglob("*.py"):
        assert not own & {name.split(".")[0] for name in _imports(path)}, path


def test_importing_the_package_loads_no_extra():
    script = "import sys, fusedlstm; print(sorted({'numpy', 'safetensors', 'tqdm', 'onnxscript'} & set(sys.modules)))"
    torch_alone = script.replace("fusedlstm", "torch")  # torch imports numpy if it is installed
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for code in (script, torch_alone)
    ]
    assert runs[0] == runs[1]


def _includes(path: Path) -> list[str]:
    return re.findall(r'#include\s+[<"]([^>"]+)[>"]', path.read_text())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_native_sources_know_only_what_their_role_needs(path):
    torch_headers = [name for name in _includes(path) if name.startswith(("torch/", "ATen/", "c10/"))]
    if path.name == "stable.h":
        stable = ("torch/csrc/stable/", "torch/headeronly/", "torch/csrc/inductor/aoti_torch/generated/")
        assert all(name.startswith(stable) for name in torch_headers)
    else:
        assert not torch_headers
    assert path.name == "module.cpp" or not any("pybind11" in name for name in _includes(path))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_cuda_is_known_where_it_must_be(path):
    """Whatever else is in csrc/ compiles without a toolkit; that is what lets kernels and plan run in these tests."""
    toolkit = [name for name in _includes(path) if name.startswith(("cuda_", "cublas"))]
    assert not toolkit or path.name in ("device.cuh", "runtime.h", "context.cpp")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_native_source_includes_from_the_tests(path):
    """The source distribution has no tests; a build that runs kernels on a host names its header by a macro."""
    assert not [name for name in _includes(path) if "tests" in name or (ROOT / "tests" / name).exists()]


HARDWARE = r"\basm\b|__sync|__shfl|__shared__|__threadfence|threadIdx|blockIdx|blockDim|gridDim|atomic[A-Z]"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_kernels_touch_the_hardware_through_its_wrappers(path):
    """What goes past device.cuh would not run on the emulator."""
    if path.suffix in (".cu", ".cuh") and path.name != "device.cuh":
        assert not re.search(HARDWARE, path.read_text())


BANNED = [
    r"\bat::",
    r"\bc10::",
    r"torch/extension\.h",
    r"<<<[^,>]*,[^,>]*>>>",
    r"cudaDeviceSynchronize",
    r"cudaMalloc\b",
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_banned_words(path):
    text = path.read_text()
    assert not [word for word in [*BANNED, r"\bexit\("] if re.search(word, text)]


# Names that the code once had, and what to say instead. Each stood for a term of the field, or for several things.
# A word is looked for as a part of an identifier: kUntold is "k" and "untold".
_PUBLISHING = "a block publishes, as in NCCL's LL protocol and Lamport's buffers"
_BLOCKING = "the blocking of a product has BLIS's terms: MR, NR, MC, KC, NC, panels, depth"
RETIRED = {
    "csrc": {
        **dict.fromkeys(["tell", "tells", "told", "teller"], _PUBLISHING),
        "untold": "kEmpty is the sentinel of a slot's words",
        **dict.fromkeys(["forget", "forgets"], "a word of a slot is cleared; forget is a gate"),
        **dict.fromkeys(["announce", "announces"], "a block signals by its flag"),
        **dict.fromkeys(["await", "awaits"], "a block waits for a flag"),
        **dict.fromkeys(["confirm", "confirms"], "data are polled"),
        "settle": "a thread fences",
        "patience": "a wait has a spin limit",
        "piece": _BLOCKING + "; a warp's part of a sum has k-blocks",
        "pieces": _BLOCKING + "; a warp's part of a sum has k-blocks",
        "incoming": "gradients of a layer's outputs are OutputGradients",
        "rebuild": "users know it as recompute",
    },
    "csrc/cpu": {
        "chunk": "so many steps are a time_block",
        "chunks": "so many steps are a time_block",
        **dict.fromkeys(["near", "room"], _BLOCKING + "; memory is a workspace"),
        **dict.fromkeys(["turn", "turned"], "a matrix is transposed"),
        **dict.fromkeys(["octet", "octets"], "units form unit blocks"),
    },
    "csrc/cuda": {
        "wanted": "a strategy that is asked for is a StrategyChoice",
        "work": "a call is a LayerCall",
        "place": "a cell has coordinates",
    },
    "fusedlstm": {"rebuild": "users know it as recompute"},
}


def _words(path: Path) -> set[str]:
    """The words of the identifiers in a source, in lower case, comments and text aside."""
    text = path.read_text()
    if path.suffix == ".py":
        names = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
        names |= {node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
        names |= {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        names |= {node.arg for node in ast.walk(ast.parse(text)) if isinstance(node, ast.arg)}
    else:
        names = set(re.findall(r"[A-Za-z_]\w*", re.sub(r'//.*|"(?:[^"\\]|\\.)*"', "", text)))
    return {word.lower() for name in names for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


@pytest.mark.parametrize("folder", RETIRED)
def test_retired_names_stay_retired(folder):
    files = [path for path in [*SOURCES, *MODULES] if path.is_relative_to(ROOT / folder)]
    found = [
        f'{path.relative_to(ROOT)}: "{word}"; {reason}'
        for path in files
        for word, reason in RETIRED[folder].items()
        if word in _words(path)
    ]
    assert files
    assert not found, "\n".join(found)


def test_every_source_is_built():
    listed = (ROOT / "setup.py").read_text()
    missing = [path for path in SOURCES if path.suffix in (".cpp", ".cu") and str(path.relative_to(ROOT)) not in listed]
    assert not missing


def test_public_names():
    assert set(fusedlstm.__all__) == {"LSTM", "LSTMCell", "lstm", "replace_lstm", "restore_lstm"}
    for name in fusedlstm.__all__:
        assert getattr(fusedlstm, name).__doc__, f"{name} has no docstring"
    assert callable(fusedlstm.lstm)
