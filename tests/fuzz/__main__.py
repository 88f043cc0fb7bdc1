"""Differential fuzzing: random calls of the public API against a loop in float64, and calls that must be errors.

    python -m tests.fuzz --cases 5000          # make fuzz
    python -m tests.fuzz --seed 123            # one seed on every device and instruction set
    python -m tests.fuzz --seed 123 --target avx2

A seed stands for the same call everywhere. The exit status is 1 when one failed.
"""

import argparse
import json
import os
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest has it: the tests import each other by their names

from fuzz import bad_input, check, problem, targets

# One seed in so many is a bad call.
BAD = 4


def describe(seed: int, target: targets.Target) -> str:
    """What a seed stands for."""
    if is_bad(seed, target):
        return bad_input.draw(seed).text
    return str(problem.draw(seed, target.device == "emulated"))


def is_bad(seed: int, target: targets.Target) -> bool:
    """Whether a seed is a call that must be an error; those do not reach kernels, and so run on the CPU alone."""
    return seed % BAD == BAD - 1 and target.device == "cpu"


def work(target: targets.Target) -> None:
    """Answers each seed from the standard input with its error, in JSON."""
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)  # uninitialised memory is NaN
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints must not be taken for an answer
    for line in sys.stdin:
        seed, error = int(line), None
        try:
            if is_bad(seed, target):
                bad_input.check(seed)
            else:
                check.check(problem.draw(seed, target.device == "emulated"), target.device)
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
        print(json.dumps(error), file=answers, flush=True)


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=5000, help="seeds to run, divided among the targets")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="this seed alone, on each target")
    names = [*targets.INSTRUCTION_SETS, "emulated", "cuda"]
    parser.add_argument("--target", action="append", choices=names, help="default: all that this machine has")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) // 2), help="processes at a time")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    chosen = [targets.named(name) for name in args.target] if args.target else targets.usable()
    if args.worker:
        work(chosen[0])
        return 0
    seeds = [args.seed] if args.seed is not None else list(range(args.first, args.first + args.cases))
    # Consecutive seeds to each target, so that every one gets bad calls too.
    each = len(seeds) / len(chosen)
    shares = [
        seeds if args.seed is not None else seeds[round(k * each) : round((k + 1) * each)] for k in range(len(chosen))
    ]
    return _report(dict(zip(chosen, shares, strict=True)), args.jobs)


def _report(shares: dict[targets.Target, list[int]], jobs: int) -> int:
    start, failed, stop = time.monotonic(), [], threading.Event()
    bar = tqdm(total=sum(map(len, shares.values())), unit="seed", smoothing=0)

    def run(target: targets.Target) -> None:
        for outcome in targets.run(target, shares[target]):
            if outcome.error:
                failed.append(outcome)
                text = describe(outcome.seed, target)
                tqdm.write(f"{target.command(outcome.seed)}\n  {text}\n  {outcome.error}")
            bar.set_postfix_str(f"{len(failed)} failed", refresh=False)
            bar.update()
            if stop.is_set():
                return

    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(run, target) for target in shares]
        try:
            for one in as_completed(running):
                one.result()
        except KeyboardInterrupt:
            stop.set()  # each worker ends with its seed
            pool.shutdown(cancel_futures=True)
    bar.close()
    minutes, names = (time.monotonic() - start) / 60, ", ".join(map(str, shares))
    print(f"{bar.n} of {bar.total} seeds on {names} in {minutes:.1f} min: {len(failed)} failed")
    if failed:
        first = min(failed, key=lambda outcome: outcome.seed)
        print(f"the first: {first.target.command(first.seed)}")
    return 1 if failed or stop.is_set() else 0


if __name__ == "__main__":
    sys.exit(main())
