"""Measures LSTMs side by side, and makes tables and figures of what was measured.

    python -m benchmarks run [--set NAME] [--case NAME ...] [--provider NAME ...] [--resume]
    python -m benchmarks report | plot | growth | limits | tiers | kernels | micro | stalls | list

Rows go to benchmarks/results/<machine>/rows.csv; measuring again replaces them.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

import fusedlstm
from benchmarks import environment, growth, kernels, limits, measure, micro, plots, records, report, stalls, tiers
from benchmarks.cases import CASES, DTYPES, MODES, SETS, Case
from benchmarks.providers import BASELINE, PROVIDERS, Provider
from fusedlstm import _C

Measurement = tuple[Case, str, str]  # with a mode and a dtype
README = Path(__file__).parent.parent / "README.md"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--device", default=default, choices=["cpu", "cuda"], help="default: a GPU if there is one")
    common.add_argument("--results", type=Path, help="folder of the rows (default: benchmarks/results/<machine>)")
    run = commands.add_parser("run", parents=[common], help="measure and write rows")
    run.add_argument("--set", choices=SETS, help="cases to measure (default: cpu or gpu)")
    run.add_argument("--case", action="append", choices=CASES, metavar="NAME", help="single cases instead of a set")
    run.add_argument("--provider", action="append", choices=PROVIDERS, metavar="NAME", help="default: all of them")
    run.add_argument(
        "--mode", action="append", choices=MODES, help="default: those of a case's users; inference, training, lm_step"
    )
    run.add_argument(
        "--dtype", action="append", choices=DTYPES, help="default: those of a case's users; float32, on a GPU all"
    )
    run.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU, for every provider")
    run.add_argument("--seconds", type=float, default=0.7, help="of timing for each provider of each measurement")
    run.add_argument("--quick", action="store_true", help="the quick set, a fifth of the seconds")
    run.add_argument("--resume", action="store_true", help="leave out what this commit has measured on this device")
    run.add_argument("--toy", action="store_true", help="every case at a size for tests; its rows mean nothing")
    for name, text in (("report", "tables.md, and the README's section"), ("plot", "figures")):
        commands.add_parser(name, parents=[common], help=f"write {text} from the rows")
    grow = commands.add_parser("growth", parents=[common], help="how time and memory grow with T, N, H and L")
    grow.add_argument("--quick", action="store_true")
    limits_of = commands.add_parser("limits", parents=[common], help="write limits.md: how far a CPU's limits are")
    limits_of.add_argument("--seconds", type=float, default=1.0, help="for each figure")
    forced = commands.add_parser("tiers", parents=[common], help="write tiers.jsonl: a GPU's strategies, each forced")
    forced.add_argument("--case", action="append", choices=CASES, metavar="NAME", help="default: the gpu set")
    forced.add_argument("--dtype", action="append", choices=DTYPES, help="default: bfloat16 and float32")
    forced.add_argument("--sweep", type=int, default=0, metavar="N", help="N more divisions of each persistent launch")
    commands.add_parser("kernels", parents=[common], help="write kernels.jsonl: a GPU's kernels against their limits")
    facts = commands.add_parser("micro", parents=[common], help="write micro.jsonl: single facts of a GPU; needs nvcc")
    facts.add_argument("--section", action="append", choices=micro.SECTIONS, help="default: all of them")
    facts.add_argument("--seconds", type=float, default=0.05, help="for each point")
    commands.add_parser("stalls", parents=[common], help="write stalls.md: where a GPU's warps wait; needs ncu")
    commands.add_parser("list", help="cases and providers")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; without the program's name in ``arguments``, and None takes the process's own."""
    args = _parse(arguments)
    if args.command == "list":
        for case in CASES.values():
            sizes = f"T{case.T} N{case.N} I{case.I} H{case.H} L{case.L} D{case.D} P{case.P}"
            print(f"{case.name:<18} {sizes}  {case.form}: {case.origin}")
        for provider in PROVIDERS.values():
            print(f"{provider.name:<18} {provider.about}")
        return 0
    if args.command == "run" and args.toy and not args.results:
        sys.exit("run: --toy needs --results FOLDER; its rows would stand among real ones")
    device = torch.device(args.device)
    if args.command in _ON_A_GPU and (device.type != "cuda" or not torch.cuda.is_available()):
        sys.exit(f"{args.command}: needs a GPU that torch sees, and --device cuda")
    folder = args.results or records.RESULTS / environment.folder(device)
    if args.command == "run":
        return _run(args, device, folder / "rows.csv")
    if args.command == "growth":
        return _growth(device, args.quick)
    if args.command == "limits":
        if device.type != "cpu":
            sys.exit("limits: --device must be cpu; a GPU's rows come with kernels and memory")
        text = limits.report(args.seconds)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "limits.md").write_text(text + "\n")
        print(text)
        return 0
    if args.command == "tiers":
        if device.type != "cuda":
            sys.exit("tiers: --device must be cuda; a CPU has one strategy")
        return _tiers(args, folder / "tiers.jsonl")
    if args.command in _ON_A_GPU:
        return _ON_A_GPU[args.command](args, folder)
    rows = records.read(folder / "rows.csv")
    if args.command == "report":
        (folder / "tables.md").write_text(report.tables(rows))
        shown = report.shown(records.RESULTS)
        if folder.resolve() in shown:
            report.update_readme(README, [records.read(path / "rows.csv") for path in shown])
        print(report.tables(rows))
    else:
        plots.draw(rows, folder)
    return 0


def _cases(args: argparse.Namespace) -> list[Case]:
    names = args.case or SETS["quick" if args.quick else args.set or ("gpu" if args.device == "cuda" else "cpu")]
    cases = [CASES[name] for name in names]
    return [case.toy() for case in cases] if args.toy else cases


def _work(case: Case, args: argparse.Namespace, device: torch.device) -> list[Measurement]:
    """The measurements of a case: in the modes and dtypes that are asked for, else in those of its users."""
    modes = args.mode or case.modes or ["inference", "training", "lm_step"]
    dtypes = args.dtype or case.dtypes or (["float32"] if device.type == "cpu" else list(DTYPES))
    return [
        (case, mode, dtype)
        for dtype, mode in product(dtypes, modes)
        if mode != "lm_step" or (case.V and dtype in ("float32", "ieee"))
    ]


def _left(work: list[Measurement], providers: list[Provider], device: torch.device, path: Path) -> list[Measurement]:
    """The measurements of which a provider has no row yet of this commit, device and number of threads.

    A row with an error counts, but not that of a package that was missing then and is here now.
    """
    commit = environment.commit()
    if commit == "unknown" or commit.endswith("-dirty"):
        sys.exit(
            f"run: --resume needs a commit that says what was measured, got {commit!r}; commit the sources, or set"
            " FUSEDLSTM_COMMIT"
        )
    here = commit, environment.device_name(device), torch.get_num_threads()
    done = {
        (row.case, row.mode, row.dtype, row.provider)
        for row in (records.read(path) if path.exists() else [])
        if (row.commit, row.device, row.threads) == here
        and not (row.error.startswith("absent: ") and not PROVIDERS[row.provider].absent())
    }
    return [
        (case, mode, dtype)
        for case, mode, dtype in work
        if any(
            (case.name, mode, dtype, provider.name) not in done
            for provider in measure.able(providers, case, mode, dtype, device)
        )
    ]


def _run(args: argparse.Namespace, device: torch.device, path: Path) -> int:
    torch.set_num_threads(args.threads)
    # Ratios are of one run: fusedlstm and nn.LSTM take part in each, and whatever the ratio of a provider is to.
    asked = [PROVIDERS[name] for name in args.provider or PROVIDERS]
    names = dict.fromkeys(["fusedlstm", BASELINE, *(name for each in asked for name in (each.name, each.baseline))])
    providers = [PROVIDERS[name] for name in names]
    work = [item for case in _cases(args) for item in _work(case, args, device)]
    if args.resume:
        work, everything = _left(work, providers, device, path), len(work)
        print(f"{everything - len(work)} of {everything} measurements left out: {path} has them of this commit")
    seconds = args.seconds / 5 if args.quick or args.toy else args.seconds
    failures = 0
    bar = tqdm(work, unit="measurement", file=sys.stderr)
    for case, mode, dtype in bar:
        bar.set_postfix_str(f"{case.name} {mode} {dtype}")
        rows = list(measure.measure(case, mode, dtype, providers, device, seconds))
        records.write(path, rows)  # at once: what was measured survives an interruption
        failures += sum(row.provider in (report.OURS, report.OURS_GRAPH) and bool(row.error) for row in rows)
        for row in rows:
            tqdm.write(_line(row))
    print(f"{len(work)} measurements in {path}; {failures} in which fusedlstm failed its check")
    return 1 if failures else 0


def _tiers(args: argparse.Namespace, path: Path) -> int:
    cases = [CASES[name] for name in args.case or SETS["gpu"]]
    limits_of_gpu = _limits_of_this_gpu("tiers")
    for case, dtype in product(cases, args.dtype or ("bfloat16", "float32")):
        if case.I != case.H or case.P:
            sys.exit(f"tiers: --case must be one with I = H and no projection, got {case.name}")
        found = list(tiers.measure(case, dtype, limits_of_gpu, args.sweep))
        tiers.write(path, found)
        for tier in found:
            direction = "backward" if tier.backward else "forward"
            name = f"{tier.case:<18} {tier.dtype:<9} {direction:<8} {tier.strategy:<16} {tier.division:<7}"
            kernel = "" if tier.kernel_us is None else f", kernel {tier.kernel_us:7.2f}"
            chosen = "*" if tier.chosen else " "
            print(f"{name} {chosen} expected {tier.predicted_us:7.2f} us a step, took {tier.wall_us:7.2f}{kernel}")
    return 0


def _limits_of_this_gpu(command: str) -> _C.Limits:
    launch_us = _C.launch_us()
    if launch_us is None:
        sys.exit(f"{command}: this build has no CUDA kernels; reinstall with a CUDA build of torch and a CUDA toolkit")
    return tiers.limits_of_this_gpu(launch_us)


def _kernels(args: argparse.Namespace, folder: Path) -> int:
    failures = 0
    for found in kernels.measure(_limits_of_this_gpu("kernels")):
        kernels.write(folder / "kernels.jsonl", found)
        for record in found:
            failures += not record["passes"]
            took = "no time" if record["measured_us"] is None else f"{record['measured_us']:.2f} us"
            line = f"{record['name']:<60} {took}, expected {record['predicted_us']}, at most {record['kill_us']}"
            print(line if record["passes"] else f"{line}: MISSED; {record['if_missed']}", flush=True)
    return 1 if failures else 0


def _micro(args: argparse.Namespace, folder: Path) -> int:
    if args.seconds <= 0:
        sys.exit(f"micro: --seconds must be above 0, got {args.seconds}")
    failures = 0
    try:
        for section, found in micro.measure(args.section or micro.SECTIONS, args.seconds):
            micro.write(folder / "micro.jsonl", section, found)
            failures += sum(not record["ok"] for record in found)
            for record in found:
                print(*(f"{name}={value}" for name, value in record.items() if name not in micro.ORIGIN), flush=True)
    except FileNotFoundError as error:
        sys.exit(f"micro: {error}")
    return 1 if failures else 0


def _stalls(args: argparse.Namespace, folder: Path) -> int:
    try:
        failures = list(stalls.measure(folder))
    except FileNotFoundError as error:
        sys.exit(f"stalls: {error}")
    print(folder / "stalls.md", *failures, sep="\n")
    return 1 if failures else 0


_ON_A_GPU = {"kernels": _kernels, "micro": _micro, "stalls": _stalls}


def _line(row: records.Row) -> str:
    name = f"{row.case:<18} {row.mode:<10} {row.dtype:<9} {row.provider:<14}"
    if row.error:
        return f"{name} {row.error}"
    of = PROVIDERS[row.provider].baseline
    ratio = "" if row.ratio is None else f"{row.ratio:6.2f}x of {of} ({row.ratio_low:.2f} to {row.ratio_high:.2f})"
    return f"{name} {row.median_us:12.1f} us {ratio}"


def _growth(device: torch.device, quick: bool) -> int:
    provider = [PROVIDERS["fusedlstm"]]
    for variable in "TNHL":
        points = []
        for case in tqdm(growth.sweep(variable, quick), desc=f"growth with {variable}", file=sys.stderr):
            lstm = fusedlstm.LSTM(case.I, case.H, case.L, device=device)
            kept = sum(growth.kept_bytes(lstm, torch.randn(case.T, case.N, case.I, device=device))) / 2**20
            for row in measure.measure(case, "training", "float32", provider, device, 0.5):
                points.append((variable, getattr(case, variable), row.median_us, kept))
        print(growth.table(points))
    return 0


if __name__ == "__main__":
    sys.exit(main())
