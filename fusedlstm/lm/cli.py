"""The commands: python -m fusedlstm train | generate | info.

The rest of fusedlstm.lm is imported inside functions, since ``info`` and ``--help`` work without the lm extra.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch

import fusedlstm.lm.messages as messages  # "from fusedlstm.lm import" would need the lm extra
from fusedlstm.lm.errors import InputError
from fusedlstm.lm.parser import COMMAND, CONFIG_OPTIONS, USAGE_ERROR, flag, parser

if TYPE_CHECKING:
    from fusedlstm.lm.console import Interrupt
    from fusedlstm.lm.train import Trainer

_LOST_PROCESS = 1
_OUTPUT_LOST = 1
_INTERRUPTED = 130
# What torch says of memory in a RuntimeError without a class of its own.
_NO_MEMORY = "DefaultCPUAllocator", "bad_alloc", "Storage size calculation overflowed"

# What a message of the library may begin with and is an option here.
_OPTIONS = "data", "out", "resume", "device", "minutes", "eval_every", "prompt", "length", "temperature", "top_k"
_NAMED = {*_OPTIONS, *CONFIG_OPTIONS}


def _train(args: argparse.Namespace) -> int:
    from fusedlstm.lm import checkpoint, parallel
    from fusedlstm.lm.console import Interrupt

    begin = time.time()

    def last_checkpoint() -> str:
        out = Path(args.out)
        # With --force the file is another run's until this run has saved.
        if not out.exists() or not (args.resume or out.stat().st_mtime >= begin):
            return "last checkpoint: none yet"
        return f"last checkpoint: {out}, step {checkpoint.load(out).step}; {_how_to_resume(out)}"

    # Outside the process group: when a process is lost, torchrun sends SIGTERM to the others, which must still report.
    with Interrupt(shown=messages.process() == "0") as interrupt:
        try:
            with parallel.process_group(), ExitStack() as claim:
                return _train_in_group(args, interrupt, claim)
        except parallel.LostProcessError as error:
            messages.fail(f"{error}; {last_checkpoint()}")
            return _LOST_PROCESS
        except KeyboardInterrupt:
            messages.say(f"interrupted at once; {last_checkpoint()}", sys.stderr)
            return _INTERRUPTED


def _train_in_group(args: argparse.Namespace, interrupt: Interrupt, claim: ExitStack) -> int:
    from fusedlstm.lm import parallel

    _check_limits(args)
    _claim_out(args, claim)
    trainer = _trainer(args)
    out, config, first = Path(args.out), trainer.config, parallel.rank() == 0

    def say(text: str, file: TextIO | None = None) -> None:
        if first:
            messages.say(text, file)

    if trainer.step >= config.steps:
        say(f"{out} is complete at step {trainer.step}; give --steps above that to train it further")
        return 0
    size = sum(parameter.numel() for parameter in trainer.model.parameters())
    processes = f", {parallel.size()} processes" if parallel.size() > 1 else ""
    say(
        f"{size:,} parameters, {len(trainer.corpus.train):,} training tokens, vocabulary of "
        f"{trainer.corpus.vocabulary.size:,}; steps {trainer.step + 1} to {config.steps} into {out}{processes}",
        sys.stderr,
    )
    if parallel.any_process(interrupt.requested):
        say("interrupted before the first step", sys.stderr)
        return _INTERRUPTED
    result = _train_and_save(trainer, args, interrupt)
    if result is None:
        interrupted = parallel.any_process(interrupt.requested)
        reason = "interrupted" if interrupted else "the output cannot be written"
        with suppress(OSError):  # standard error may be that output
            say(f"{reason}; saved step {trainer.step} of {config.steps} to {out}, {_how_to_resume(out)}", sys.stderr)
        return _INTERRUPTED if interrupted else _OUTPUT_LOST
    say(result)
    if trainer.step < config.steps:
        say(f"time is up; saved {out}, {_how_to_resume(out)}")
    else:
        say(f"saved {out}; try it with: {COMMAND} generate {out}")
    return 0


def _check_limits(args: argparse.Namespace) -> None:
    if args.eval_every < 1:
        raise InputError(f"eval_every must be at least 1, got {args.eval_every}")
    if args.minutes is not None and not 0 < args.minutes < math.inf:
        raise InputError(f"minutes must be a finite number above 0, got {args.minutes}")


def _claim_out(args: argparse.Namespace, claim: ExitStack) -> None:
    """Locks and checks --out in process 0, for all."""
    from fusedlstm.lm import parallel

    refusal: InputError | None = None
    if parallel.rank() == 0:
        try:
            _lock_out(args.out, claim)
            _check_out(args)
        except InputError as error:
            refusal = error
    if parallel.any_process(refusal is not None):
        raise refusal or SystemExit(USAGE_ERROR)  # process 0 says why


def _lock_out(out: str, claim: ExitStack) -> None:
    from fusedlstm.lm import files

    try:
        claim.enter_context(files.lock(out))
    except BlockingIOError as error:
        raise InputError(
            f"out must be free, got {out}, which another run writes: {error}; wait for it, or choose another file"
        ) from error
    except OSError as error:
        raise InputError(
            f"out must be a file in a folder that exists and can be written, got {out or 'an empty name'}: {error}; "
            "choose another"
        ) from error


def _check_out(args: argparse.Namespace) -> None:
    out = Path(args.out)
    if args.resume and not out.exists():
        raise InputError(f"resume must find a checkpoint in --out, got no file {out}; leave --resume out to start anew")
    if out.exists() and not (args.resume or args.force):
        raise InputError(f"out must not exist yet, got {out}; give --resume to go on with it or --force to replace it")
    if out.exists() and any(_is_same(out, name) for name in getattr(args, "data", ())):
        raise InputError(f"out must be another file than --data, got {out} for both; choose another")


def _is_same(out: Path, name: str) -> bool:
    try:
        return out.samefile(name)
    except (OSError, ValueError):  # what cannot be read is reported where it is read
        return False


def _trainer(args: argparse.Namespace) -> Trainer:
    from fusedlstm.info import gpu_is_usable
    from fusedlstm.lm import TrainConfig, Trainer, parallel

    given: dict[str, Any] = {field: getattr(args, field) for field in CONFIG_OPTIONS if hasattr(args, field)}
    if hasattr(args, "data"):
        given["data"] = tuple(args.data)
    device = "cuda" if gpu_is_usable() and parallel.size() == 1 else "cpu"
    if args.device is not None:
        device = args.device
    return Trainer.resume(args.out, device, **given) if args.resume else Trainer(TrainConfig(**given), device)


def _train_and_save(trainer: Trainer, args: argparse.Namespace, interrupt: Interrupt) -> str | None:
    """Trains to the end or the time limit; returns the last evaluation, None if it was stopped before."""
    from fusedlstm.lm import parallel
    from fusedlstm.lm.console import Progress

    config = trainer.config
    deadline = math.inf if args.minutes is None else time.monotonic() + 60 * args.minutes

    def late() -> bool:
        return time.monotonic() >= deadline

    tokens = config.window * config.batch_size
    with Progress(config.steps, trainer.step, tokens, parallel.rank() == 0) as progress:
        while True:
            until = (trainer.step // args.eval_every + 1) * args.eval_every
            trainer.run(until, progress.update, stop=lambda: interrupt.requested or progress.lost or late())
            trainer.save(args.out)
            if parallel.any_process(interrupt.requested or progress.lost):
                return None
            result = f"step {trainer.step}/{config.steps}  held-out {trainer.evaluate()}"
            if trainer.step == config.steps or parallel.any_process(late()):
                return result
            progress.say(result)


def _how_to_resume(out: Path) -> str:
    return f"go on with: {COMMAND} train --out {out} --resume"


def _generate(args: argparse.Namespace) -> int:
    from fusedlstm.lm import load_model, stream

    model, vocabulary = load_model(args.checkpoint)
    pieces = stream(model, vocabulary, args.prompt, args.length, args.temperature, args.top_k, args.seed)
    try:
        for piece in pieces:
            messages.write(piece)
    finally:
        messages.write("\n")
    return 0


def _info(args: argparse.Namespace) -> int:
    from fusedlstm.info import report

    messages.say(report())
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; None takes the process's own.

    Returns:
        Exit status: 0; 1 if another process of the run was lost or the output cannot be written; 2 after an error; 130
        after Ctrl-C.
    """
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        with suppress(OSError):
            messages.say("interrupted", sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # the reader of the output has exited, as head does
        return _OUTPUT_LOST
    finally:
        messages.drop_unwritable()


def _run(arguments: Sequence[str] | None) -> int:
    """Runs one command. What is wrong with its input becomes one line; any other error is one of this program."""
    commands = {"train": _train, "generate": _generate, "info": _info}
    try:
        try:
            args = parser().parse_args(arguments)
        except SystemExit:
            with messages.output():
                sys.stdout.flush()  # the help
            raise
        return commands[args.command](args)
    except BrokenPipeError:
        raise
    except (FloatingPointError, InputError, ModuleNotFoundError, OSError) as error:
        # A message of the library begins with the argument's name; this program names the option instead.
        name, _, rest = str(error).partition(" ")
        messages.fail(f"{flag(name)} {rest}" if name in _NAMED else str(error))
    except (MemoryError, RuntimeError) as error:
        explained = _explain(error)
        if explained is None:
            raise
        messages.fail(explained)
    return USAGE_ERROR


def _explain(error: MemoryError | RuntimeError) -> str | None:
    """What the user can do about an error of torch or of our kernels, None if it is a fault of the program."""
    text = str(error)
    if setting := re.search("FUSEDLSTM_[A-Z_]+ must be .*", text):  # an environment variable
        return setting[0]
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(phrase in text for phrase in _NO_MEMORY):
        reason = text.partition("\n")[0] or "an allocation failed"
        return f"memory must hold model and batch, got the error: {reason}; choose smaller sizes"
    return None
