"""The agenda: what a GPU is wanted for, in order of value, until the time with it is spent.

    python -m tests.agenda dry                  # the parts, without a GPU (make gpu-agenda-dry)
    python -m tests.agenda run --budget 780     # on a GPU (make gpu-agenda)
    python -m tests.agenda collect ARCHIVE      # puts the records in their places (make gpu-collect)
    python -m tests.agenda build                # the package, for the GPU here alone (make gpu-build)

Exit status of a run: 0; 1 if a part did not pass; 130 or 143 after Ctrl-C or SIGTERM.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest has it: the tests import each other by their names

from agenda import archive, build, listing, runner, state
from agenda.machine import commit_of, this_machine
from agenda.parts import PARTS
from agenda.sources import ROOT, Sources

from benchmarks import environment, records


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; without the program's name in ``arguments``, and None takes the process's own."""
    parser = argparse.ArgumentParser(prog="python -m tests.agenda", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--results", type=Path, default=records.RESULTS, help="folder of all records")
    budget = argparse.ArgumentParser(add_help=False)
    budget.add_argument("--budget", type=_seconds, default=780.0, help="seconds for everything, the build among it")
    run = commands.add_parser("run", parents=[budget], help="run what is not current")
    run.add_argument("--out", type=Path, default=ROOT / "build/agenda", help="folder of archive, log and summary")
    dry = commands.add_parser("dry", parents=[common, budget], help="list the parts, their states and order")
    dry.add_argument("--gpu", metavar="FOLDER", help="a machine's folder in the results; default: each that there is")
    collect = commands.add_parser("collect", parents=[common], help="put the records of a run in their places")
    collect.add_argument("archive", type=Path, help="records.tar.gz of a run")
    collect.add_argument("--force", action="store_true", help="take records of other sources, replace changed files")
    commands.add_parser("build", help="build the package for the GPU here alone")
    args = parser.parse_args(arguments)

    if args.command == "build":
        return build.build()
    sources = Sources()
    digest = sources.of_all(PARTS)
    if args.command == "run":
        machine = this_machine(digest)
        return runner.Run(PARTS, machine, records.RESULTS, args.out.resolve(), args.budget, sources).run()
    if args.command == "dry":
        folders = [args.gpu] if args.gpu else _folders(args.results)
        print("\n\n".join(_dry(args.results, folder, args.budget, sources) for folder in folders))
        return 0
    try:
        commit = commit_of(environment.commit(), digest)
        for line in archive.collect(args.archive, args.results, digest, commit, args.force):
            print(line)
    except archive.RefusedError as error:
        print(f"agenda: {error}", file=sys.stderr)
        return 1
    print("\n\n".join(_dry(args.results, folder, 780.0, sources) for folder in _folders(args.results)))
    return 0


def _seconds(text: str) -> float:
    seconds = float(text)
    if not seconds > runner.RESERVE:
        raise argparse.ArgumentTypeError(f"must be more than {runner.RESERVE:.0f} s, which no part gets, got {text}")
    return seconds


def _folders(results: Path) -> list[str]:
    """The machines with a GPU that have records, or one that has none."""
    found = sorted(path.name for path in results.glob("*/") if path.is_dir() and not path.name.startswith("cpu-"))
    return found or ["no GPU yet"]


def _dry(results: Path, folder: str, budget: float, sources: Sources) -> str:
    states = {part.name: state.state_of(part, results / folder, sources) for part in PARTS}
    return listing.dry(folder, PARTS, states, budget - runner.RESERVE)


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # a run is watched through pipes
    sys.exit(main())
