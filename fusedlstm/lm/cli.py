"""The command line: python -m fusedlstm train | generate | info.

The rest of fusedlstm.lm is imported inside functions, since ``info`` and ``--help`` work without the lm extra.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

if TYPE_CHECKING:
    from fusedlstm.lm.console import Interrupt
    from fusedlstm.lm.train import Trainer

_LOST_PROCESS = 1
_READER_GONE = 1
_USAGE_ERROR = 2
_INTERRUPTED = 130
_COMMAND = "python -m fusedlstm"
_EXAMPLES = f"""\
examples:
  {_COMMAND} train --steps 500                      learn the Python standard library's source, a few minutes
  {_COMMAND} generate model.safetensors --prompt "def "
  {_COMMAND} info
"""
_TRAIN_EXAMPLES = f"""\
examples:
  {_COMMAND} train --data input.txt --out shakespeare.safetensors
  {_COMMAND} train --out shakespeare.safetensors --resume       go on after Ctrl-C, to the same result
  {_COMMAND} train --data input.txt --vocabulary words --max-words 10000 --out words.safetensors
  torchrun --nproc-per-node 2 -m fusedlstm train    in two processes, which share the batch
"""
_GENERATE_EXAMPLES = f"""\
example:
  {_COMMAND} generate shakespeare.safetensors --prompt "ROMEO:" --length 1000 --temperature 0.8
"""

# Options of `train` that are fields of TrainConfig: metavar, type, help. The parser sets only those that were typed;
# defaults are those of TrainConfig, or of the checkpoint with --resume.
_CONFIG_OPTIONS: dict[str, tuple[str, type, str]] = {
    "vocabulary": ("KIND", str, "bytes, or words (between whitespace)"),
    "max_words": ("COUNT", int, "with words: keep this many of the most frequent; the others become <unk>"),
    "held_out": ("FRACTION", float, "end of the text kept for evaluation"),
    "cell": ("CELL", str, "lstm (fusedlstm.LSTM), torch (nn.LSTM) or rnn (nn.RNN)"),
    "embed_size": ("SIZE", int, "width of the embedding"),
    "hidden_size": ("SIZE", int, "width of each recurrent layer"),
    "num_layers": ("COUNT", int, "recurrent layers"),
    "dropout": ("P", float, "probability of zeroing an activation while training"),
    "window": ("STEPS", int, "steps that gradients flow back through"),
    "batch_size": ("COUNT", int, "streams of text trained side by side"),
    "steps": ("COUNT", int, "updates to make"),
    "learning_rate": ("RATE", float, "Adam's, at its highest; it decays to a tenth"),
    "clip": ("NORM", float, "largest norm of the gradient"),
    "seed": ("NUMBER", int, "of initial weights and dropout"),
}


class _Parser(argparse.ArgumentParser):
    """Reports an error in one line, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        _fail(f"{message}; see {self.prog} --help")
        sys.exit(_USAGE_ERROR)


def _fail(message: str) -> int:
    where = "" if _process() == "0" else f" in process {_process()}"
    # One write, where print makes several: under torchrun the processes share a stream, and their texts would mix.
    sys.stderr.write(f"fusedlstm: error{where}: {' '.join(message.split())}\n")
    return _USAGE_ERROR


def _process() -> str:
    """Number of this process among those that torchrun started."""
    return os.environ.get("RANK", "0")


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def _default(field: str) -> str:
    """The default of a TrainConfig field, as the help shows it; nothing if the lm extra is not installed."""
    try:
        from fusedlstm.lm import TrainConfig
    except ModuleNotFoundError:
        return ""
    value = getattr(TrainConfig, field)
    return "" if value is None else f" (default {value})"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=_COMMAND,
        description="Train a language model on any text with fusedlstm.LSTM, and let it write.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _describe_train(
        commands.add_parser(
            "train",
            help="train a language model and save it",
            description="Train a language model; Ctrl-C saves, --resume goes on to exactly the same result.",
            epilog=_TRAIN_EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )
    )
    _describe_generate(
        commands.add_parser(
            "generate",
            help="write text with a trained model",
            description="Continue a prompt with a trained model; the same seed writes the same text.",
            epilog=_GENERATE_EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
    )
    info = commands.add_parser("info", help="show versions, the build and what it can use", allow_abbrev=False)
    info.set_defaults(run=_info)
    return parser


def _describe_train(train: argparse.ArgumentParser) -> None:
    train.set_defaults(run=_train)
    train.add_argument(
        "--data", metavar="FILE", nargs="+", help="text to learn (default: the Python standard library's source)"
    )
    train.add_argument(
        "--out", metavar="FILE", default="model.safetensors", help="checkpoint to write (default %(default)s)"
    )
    existing = train.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", default=False, help="go on with the run saved in --out")
    existing.add_argument("--force", action="store_true", default=False, help="replace --out if it exists")
    for field, (metavar, kind, text) in _CONFIG_OPTIONS.items():
        train.add_argument(_flag(field), metavar=metavar, type=kind, help=text + _default(field))
    train.add_argument(
        "--device", metavar="DEVICE", default=None, help="cpu or cuda (default: a GPU that fusedlstm has kernels for)"
    )
    train.add_argument("--minutes", metavar="MINUTES", type=float, default=None, help="stop and save after this long")
    train.add_argument(
        "--eval-every",
        metavar="STEPS",
        type=int,
        default=500,
        help="evaluate and save this often (default %(default)s)",
    )


def _describe_generate(generate: argparse.ArgumentParser) -> None:
    generate.set_defaults(run=_generate)
    generate.add_argument("checkpoint", metavar="CHECKPOINT", help="file that train wrote")
    generate.add_argument("--prompt", metavar="TEXT", default="", help="text to continue, from the start of a line")
    generate.add_argument(
        "--length", metavar="TOKENS", type=int, default=500, help="tokens to add (default: %(default)s)"
    )
    generate.add_argument(
        "--temperature", metavar="T", type=float, default=1.0, help="below 1 more cautious (default %(default)s)"
    )
    generate.add_argument("--top-k", metavar="K", type=int, help="draw among the K most likely tokens (default: all)")
    generate.add_argument("--seed", metavar="NUMBER", type=int, default=0, help="of the draws (default %(default)s)")


def _train(args: argparse.Namespace) -> int:
    from fusedlstm.lm import checkpoint, parallel
    from fusedlstm.lm.console import Interrupt

    begin = time.time()
    # Outside the process group: when a process is lost, torchrun sends SIGTERM to the others, which must still report.
    with Interrupt(shown=_process() == "0") as interrupt:
        try:
            with parallel.process_group():
                return _train_in_group(args, interrupt)
        except parallel.LostProcessError as error:
            out = Path(args.out)
            # With --force the file is another run's until this run has saved.
            own = out.exists() and (args.resume or out.stat().st_mtime >= begin)
            last = f"{out}, step {checkpoint.load(out).step}; {_how_to_resume(out)}" if own else "none yet"
            _fail(f"{error}; last checkpoint: {last}")
            return _LOST_PROCESS


def _train_in_group(args: argparse.Namespace, interrupt: Interrupt) -> int:
    from fusedlstm.lm import parallel

    trainer = _trainer(args)
    out, config, first = Path(args.out), trainer.config, parallel.rank() == 0

    def say(text: str, file: TextIO = sys.stdout) -> None:
        if first:
            print(text, file=file)

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
        say(f"interrupted; saved step {trainer.step} of {config.steps} to {out}, {_how_to_resume(out)}", sys.stderr)
        return _INTERRUPTED
    say(result)
    if trainer.step < config.steps:
        say(f"time is up; saved {out}, {_how_to_resume(out)}")
    else:
        say(f"saved {out}; try it with: {_COMMAND} generate {out}")
    return 0


def _trainer(args: argparse.Namespace) -> Trainer:
    from fusedlstm.info import gpu_is_usable
    from fusedlstm.lm import TrainConfig, Trainer, parallel

    given: dict[str, Any] = {field: getattr(args, field) for field in _CONFIG_OPTIONS if hasattr(args, field)}
    if hasattr(args, "data"):
        given["data"] = tuple(args.data)
    if args.eval_every < 1:
        raise ValueError(f"eval_every must be at least 1, got {args.eval_every}")
    if args.minutes is not None and not args.minutes > 0:
        raise ValueError(f"minutes must be above 0, got {args.minutes}")
    out = Path(args.out)
    _check_out(out, args.resume, args.force)
    device = args.device or ("cuda" if gpu_is_usable() and parallel.size() == 1 else "cpu")
    return Trainer.resume(out, device, **given) if args.resume else Trainer(TrainConfig(**given), device)


def _train_and_save(trainer: Trainer, args: argparse.Namespace, interrupt: Interrupt) -> str | None:
    """Trains to the end or the time limit; returns the last evaluation, None after an interruption."""
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
            trainer.run(until, progress.update, stop=lambda: interrupt.requested or late())
            trainer.save(args.out)
            if parallel.any_process(interrupt.requested):
                return None
            result = f"step {trainer.step}/{config.steps}  held-out {trainer.evaluate()}"
            if trainer.step == config.steps or parallel.any_process(late()):
                return result
            progress.say(result)


def _how_to_resume(out: Path) -> str:
    return f"go on with: {_COMMAND} train --out {out} --resume"


def _check_out(out: Path, resume: bool, force: bool) -> None:
    if out.is_dir() or not out.absolute().parent.is_dir() or not os.access(out.absolute().parent, os.W_OK):
        raise ValueError(f"out must be a file in a folder that exists and can be written, got {out}; create the folder")
    if resume and not out.exists():
        raise ValueError(f"resume must find a checkpoint in --out, got no file {out}; leave --resume out to start anew")
    if out.exists() and not (resume or force):
        raise ValueError(f"out must not exist yet, got {out}; give --resume to go on with it or --force to replace it")


def _generate(args: argparse.Namespace) -> int:
    from fusedlstm.lm import load_model, sample

    model, vocabulary = load_model(args.checkpoint)
    text = sample(model, vocabulary, args.prompt, args.length, args.temperature, args.top_k, args.seed)
    # A character that the terminal cannot show becomes a question mark, not an error.
    sys.stdout.buffer.write(text.encode(sys.stdout.encoding, errors="replace") + b"\n")
    return 0


def _info(args: argparse.Namespace) -> int:
    from fusedlstm.info import report

    print(report())
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; None takes the process's own.

    Returns:
        Exit status: 0; 1 if another process of the run was lost or the reader of the output exited; 2 after an
        error; 130 after Ctrl-C.
    """
    args = _parser().parse_args(arguments)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted; nothing was saved since the last line above", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # the reader of the output has exited, as head does
        # Python flushes the buffered rest at exit, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _READER_GONE
    except (ArithmeticError, ModuleNotFoundError, OSError, ValueError) as error:
        # A message of the library begins with the argument's name; this program names the option instead.
        name, _, rest = str(error).partition(" ")
        known = (hasattr(args, name) and name != "checkpoint") or name in _CONFIG_OPTIONS
        return _fail(f"{_flag(name)} {rest}" if known else str(error))
    return status
