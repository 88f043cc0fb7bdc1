"""The options of python -m fusedlstm train | generate | info, and their help."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from fusedlstm.lm.messages import fail

USAGE_ERROR = 2
COMMAND = "python -m fusedlstm"
_EXAMPLES = f"""\
examples:
  {COMMAND} train --steps 500                      learn the Python standard library's source, a few minutes
  {COMMAND} generate model.safetensors --prompt "def "
  {COMMAND} info
"""
_TRAIN_EXAMPLES = f"""\
examples:
  {COMMAND} train --data input.txt --out shakespeare.safetensors
  {COMMAND} train --out shakespeare.safetensors --resume       go on after Ctrl-C, to the same result
  {COMMAND} train --data input.txt --vocabulary words --max-words 10000 --out words.safetensors
  torchrun --nproc-per-node 2 -m fusedlstm train    in two processes, which share the batch
"""
_GENERATE_EXAMPLES = f"""\
example:
  {COMMAND} generate shakespeare.safetensors --prompt "ROMEO:" --length 1000 --temperature 0.8
"""

# Options of `train` that are fields of TrainConfig: metavar, type, help. The parser sets only those that were typed;
# defaults are those of TrainConfig, or of the checkpoint with --resume.
CONFIG_OPTIONS: dict[str, tuple[str, type, str]] = {
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
        fail(f"{message}; see {self.prog} --help")
        sys.exit(USAGE_ERROR)


def flag(field: str) -> str:
    """The option for a field of TrainConfig, or for an argument of the library."""
    return "--" + field.replace("_", "-")


def _default(field: str) -> str:
    """The default of a TrainConfig field, as the help shows it; nothing if the lm extra is not installed."""
    try:
        from fusedlstm.lm import TrainConfig
    except ModuleNotFoundError:
        return ""
    value = getattr(TrainConfig, field)
    return "" if value is None else f" (default {value})"


def parser() -> argparse.ArgumentParser:
    """The whole command line; parsed arguments have the name of the subcommand in ``command``."""
    top = _Parser(
        prog=COMMAND,
        description="Train a language model on any text with fusedlstm.LSTM, and let it write.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
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
    info.set_defaults(command="info")
    return top


def _describe_train(train: argparse.ArgumentParser) -> None:
    train.set_defaults(command="train")
    train.add_argument(
        "--data", metavar="FILE", nargs="+", help="text to learn (default: the Python standard library's source)"
    )
    train.add_argument(
        "--out", metavar="FILE", default="model.safetensors", help="checkpoint to write (default %(default)s)"
    )
    existing = train.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", default=False, help="go on with the run saved in --out")
    existing.add_argument("--force", action="store_true", default=False, help="replace --out if it exists")
    for field, (metavar, kind, text) in CONFIG_OPTIONS.items():
        train.add_argument(flag(field), metavar=metavar, type=kind, help=text + _default(field))
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
    generate.set_defaults(command="generate")
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
