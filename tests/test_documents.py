"""What the documents say: links lead somewhere, examples run, figures are those of the records."""

import json
import re
from pathlib import Path

import pytest
import torch

import fusedlstm
from benchmarks import records, report

ROOT = Path(__file__).parent.parent
PAGES = [
    path for folder in (".", "docs", "csrc", "benchmarks", "tests") for path in sorted((ROOT / folder).glob("*.md"))
] + sorted((ROOT / "benchmarks/results").rglob("*.md"))


def _text(page):
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """To files, and to headings as GitHub names them."""
    for target in re.findall(r"\]\(([^)\s]+)\)", _text(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        titles = re.findall(r"^#+ (.+)$", _text(file), flags=re.MULTILINE) if heading else []
        names = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
        assert not heading or heading in names, target


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's exporter uses what torch deprecates
@pytest.mark.parametrize("page", ["README.md", "docs/options.md", "docs/moving.md"])
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Sequential(torch.nn.Embedding(10, 8), torch.nn.LSTM(8, 16))
    names = {"torch": torch, "fusedlstm": fusedlstm, "model": model, "x": torch.randint(10, (5, 3))}
    blocks = re.findall(r"^```python\n(.+?)^```", _text(page), flags=re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        if "fusedlstm.onnx" in block:
            pytest.importorskip("onnxscript")
            fusedlstm.replace_lstm(model)  # an example before may have put torch's own back
        exec(block, names)


def test_the_readme_is_short():
    assert len(_text("README.md").split()) <= 1200


def test_the_readme_says_what_the_rows_say():
    machines = [records.read(path / "rows.csv") for path in report.shown(records.RESULTS)]
    for name, section in report.sections(machines).items():
        begin, end = report.markers(name)
        assert f"{begin}\n{section}\n{end}" in _text("README.md"), "run: python -m benchmarks report"


def test_the_readme_says_what_the_gpu_record_says():
    record = json.loads(_text("benchmarks/results/h200/verification.json"))
    suite, probes, sanitize = (record["parts"][name] for name in ("test", "probes", "sanitize"))
    passed = suite["tests"] - suite["failed"] - suite["skipped"]
    text = " ".join(_text("README.md").split())
    assert f"an {record['gpu']}, on {suite['date']} at commit {record['commit']}." in text
    assert f"Of {suite['tests']} tests {passed} passed, {suite['failed']} failed and {suite['skipped']} were" in text
    assert probes["failed"] == sanitize["failed"] == 0
    assert f"All {probes['tests']} runs of small test kernels passed" in text
    assert all(tool in text for tool in sanitize["tools"])
