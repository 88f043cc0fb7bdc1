"""The demo: a language model trained twice from one seed, with fusedlstm.LSTM and with nn.LSTM, side by side.

    python -m benchmarks.language_model                        about four minutes on two cores
    python -m benchmarks.language_model --data input.txt       on a text of your own
    python -m benchmarks.language_model --device cuda          on a GPU

Exit status: 0; 1 if the two loss curves differ by more than rounding; 2 after an error; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from fusedlstm.lm import TrainConfig, Trainer, checkpoint, sample
from fusedlstm.lm.console import Interrupt, Progress

CELLS = {"lstm": "fusedlstm", "torch": "nn.LSTM"}
BLOCK = 20
"""Steps that one model makes before the other takes its turn, so that a slow moment of the machine hits both."""

# Rounding grows in training, as in any chaotic system. Measured: nn.LSTM against itself with one initial weight moved
# to the next float (H 256, 2048 bytes a step, 1400 steps) differs by at most 5e-7 in the first 100 losses; from step
# 400 on the two are merely equally good models, up to 2.1e-2 apart (fusedlstm against nn.LSTM: 2.7e-2). So a wrong
# gradient is looked for while the runs are close, and later only a distance beyond what two such models show.
EARLY_STEPS, EARLY_BOUND = 50, 1e-4
# On a GPU both round products to TF32 as they come: 2^-11 of a first loss of ln(256).
EARLY_BOUND_TF32 = 2.7e-3
LATE_BOUND = 0.1


def main(arguments: Sequence[str] | None = None) -> int:
    """Train both models, compare them, and write checkpoints and a figure.

    Args:
        arguments: without the program's name; None takes the process's own.

    Returns:
        Exit status, as the module says.
    """
    args = _parse(arguments)
    config = TrainConfig(
        data=tuple(args.data),
        embed_size=args.embed_size,
        hidden_size=args.hidden_size,
        num_layers=args.num_layers,
        dropout=args.dropout,
        window=args.window,
        batch_size=args.batch_size,
        steps=args.steps,
        seed=args.seed,
    )
    args.out.mkdir(parents=True, exist_ok=True)
    paths = {cell: args.out / f"{cell}.safetensors" for cell in CELLS}
    trainers = _open(config, paths, args.fresh, args.device)
    _describe(trainers["lstm"])
    with Interrupt() as interrupt:
        speeds = _train(trainers, interrupt)
        for cell, trainer in trainers.items():
            trainer.save(paths[cell])
    if interrupt.requested:
        print(f"interrupted; saved {' and '.join(map(str, paths.values()))}; run the same command again to go on")
        return 130

    for cell, trainer in trainers.items():
        print(f"{CELLS[cell]:<10} held-out {trainer.evaluate()}; {speeds[cell]:,.0f} tokens/s")
    print(f"speed: fusedlstm trains {speeds['lstm'] / speeds['torch']:.2f}x as fast as nn.LSTM (median of blocks)")
    figure = args.out / "loss.png"
    _plot(trainers, figure)
    agree = _compare(trainers, EARLY_BOUND if args.device == "cpu" else EARLY_BOUND_TF32)
    model, vocabulary = trainers["lstm"].model.cpu().eval(), trainers["lstm"].corpus.vocabulary
    text = sample(model, vocabulary, "" if args.data else "def ", length=600, temperature=0.7, seed=args.seed)
    print(f"\nsampled from fusedlstm's model:\n{text}\n")
    print("wrote", *paths.values(), figure)
    return 0 if agree else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.language_model",
        description="Train a language model with fusedlstm.LSTM and with nn.LSTM, and compare loss and speed. "
        "Ctrl-C saves; the same command again goes on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", metavar="FILE", nargs="+", default=[], help="text; none: Python's standard library")
    parser.add_argument("--steps", type=int, default=1000, help="updates of each model")
    parser.add_argument("--embed-size", type=int, default=128, help="width of the embedding")
    parser.add_argument("--hidden-size", type=int, default=256, help="width of each LSTM layer")
    parser.add_argument("--num-layers", type=int, default=1, help="LSTM layers")
    parser.add_argument("--window", type=int, default=64, help="steps that gradients flow back through")
    parser.add_argument("--batch-size", type=int, default=32, help="streams of text trained side by side")
    parser.add_argument("--dropout", type=float, default=0.0, help="probability of zeroing an activation in training")
    parser.add_argument("--device", default="cpu", help="where both are trained: cpu or cuda")
    parser.add_argument("--seed", type=int, default=0, help="of weights and sample")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for checkpoints and figure")
    parser.add_argument("--fresh", action="store_true", help="start over where an unfinished run was left")
    return parser.parse_args(arguments)


def _open(config: TrainConfig, paths: dict[str, Path], fresh: bool, device: str) -> dict[str, Trainer]:
    """Return a trainer for each cell: that of an unfinished run with this configuration, else a new one."""
    new = {cell: replace(config, cell=cell) for cell in CELLS}
    stored = {} if fresh else {cell: checkpoint.load(path) for cell, path in paths.items() if path.exists()}
    left = {cell: run for cell, run in stored.items() if run.step < run.config.steps}
    if stored and not left:
        print(f"the run in {paths['lstm'].parent} is complete: starting over")
        stored = {}
    for cell, run in stored.items():
        if run.config != new[cell]:
            raise ValueError(
                f"options must be those of the unfinished run {paths[cell]}, got others; repeat them, or give --fresh"
            )
    return {
        cell: Trainer.resume(paths[cell], device) if cell in stored else Trainer(new[cell], device) for cell in CELLS
    }


def _describe(trainer: Trainer) -> None:
    config, corpus = trainer.config, trainer.corpus
    text = ", ".join(config.data) or "source of this Python's standard library"
    print(f"text: {text}; {len(corpus.train):,} bytes to train on, {len(corpus.held_out):,} held out")
    size = sum(parameter.numel() for parameter in trainer.model.parameters())
    print(
        f"each model: {size:,} parameters, {config.num_layers} layers of {config.hidden_size}; "
        f"{config.steps} steps of {config.batch_size} x {config.window} bytes"
    )
    if trainer.step:
        print(f"going on from step {trainer.step}")


def _train(trainers: dict[str, Trainer], interrupt: Interrupt) -> dict[str, float]:
    """Train all models in turns and return the median speed of each, in tokens/s."""
    config = trainers["lstm"].config
    steps, tokens = config.steps, config.window * config.batch_size
    speeds: dict[str, list[float]] = {cell: [] for cell in trainers}
    row = max(1, steps // BLOCK // 10) * BLOCK
    done = sum(trainer.step for trainer in trainers.values())
    with Progress(2 * steps, done, tokens) as progress:
        progress.say(f"{'step':>6}{'loss: fusedlstm':>18}{'nn.LSTM':>12}{'difference':>14}")
        for until in range(BLOCK, steps + BLOCK, BLOCK):
            for cell, trainer in trainers.items():

                def count(step: int, loss: float) -> None:
                    progress.update(sum(trainer.step for trainer in trainers.values()), loss)

                start = time.perf_counter()
                made = trainer.run(until, count, stop=lambda: interrupt.requested)
                if made:
                    speeds[cell].append(len(made) * tokens / (time.perf_counter() - start))
                if interrupt.requested:
                    return {}
            step = min(until, steps)
            if made and (step % row == 0 or step == steps):
                ours, theirs = (trainers[cell].losses[step - 1] for cell in CELLS)
                progress.say(f"{step:>6}{ours:>18.4f}{theirs:>12.4f}{abs(ours - theirs):>14.1e}")
    return {cell: statistics.median(blocks) for cell, blocks in speeds.items()}


def _compare(trainers: dict[str, Trainer], early_bound: float) -> bool:
    """Say how far the loss curves are apart, and return whether rounding explains it."""
    differences = _differences(trainers)
    early, worst = max(differences[:EARLY_STEPS]), max(differences)
    config = trainers["lstm"].config
    bound = LATE_BOUND * max(1.0, math.sqrt(2048 / (config.window * config.batch_size)))  # the mean of fewer bytes
    print(
        f"largest difference of the loss curves: {worst:.1e} at step {differences.index(worst) + 1} (rounding: up to "
        f"{bound:.2g}), {early:.1e} in the first {EARLY_STEPS} steps (up to {early_bound:g})"
    )
    agree = early <= early_bound and worst <= bound
    if not agree:
        print("the curves differ by more than rounding: the two models do not compute the same function")
    return agree


def _differences(trainers: dict[str, Trainer]) -> list[float]:
    return [abs(a - b) for a, b in zip(trainers["lstm"].losses, trainers["torch"].losses, strict=True)]


def _plot(trainers: dict[str, Trainer], path: Path) -> None:
    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    steps = range(1, len(trainers["torch"].losses) + 1)
    above.plot(steps, trainers["torch"].losses, color="0.7", linewidth=3, label=CELLS["torch"])
    above.plot(steps, trainers["lstm"].losses, color="tab:red", linewidth=0.8, label=CELLS["lstm"])
    above.set_ylabel("training loss (nats/token)")
    above.legend()
    below.plot(steps, _differences(trainers), color="tab:blue", linewidth=0.8)
    below.set_yscale("symlog", linthresh=1e-7)  # equal losses are common, and a plain logarithm has no place for 0
    below.set_ylabel("|difference|")
    below.set_xlabel("step")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; nothing saved", file=sys.stderr)
        sys.exit(130)
    except (ArithmeticError, OSError, ValueError) as error:
        print("benchmarks.language_model: error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
