"""Training: truncated backpropagation through time with Adam, in runs that resume exactly."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusedlstm.info import gpu_is_usable
from fusedlstm.lm import checkpoint, memory, parallel
from fusedlstm.lm.checkpoint import Checkpoint
from fusedlstm.lm.config import TrainConfig
from fusedlstm.lm.data import Batches, load_corpus
from fusedlstm.lm.errors import CheckpointError, InputError
from fusedlstm.lm.evaluation import Evaluation, evaluate
from fusedlstm.lm.model import State, detach

# The files may have moved, since their text is compared, and the run may be extended.
_MAY_CHANGE_ON_RESUME = ("data", "steps")
_WARMUP_STEPS = 100  # or a twentieth of the run, if that is less


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Return the learning rate of one update: a short linear warm-up, then a cosine down to a tenth.

    Args:
        step: updates made before this one.
        steps: updates of the whole run.
        peak: highest value.

    Example:
        >>> learning_rate(50, 1000, 1.0)
        1.0
    """
    warmup = min(_WARMUP_STEPS, steps // 20)
    if step < warmup:
        return peak * (step + 1) / warmup
    # From 0.55 + 0.45 = 1 to 0.55 - 0.45 = 0.1.
    return peak * (0.55 + 0.45 * math.cos(math.pi * (step - warmup) / (steps - warmup)))


def _seed_of_step(seed: int, step: int, process: int) -> int:
    """A seed for the random numbers of one update in one process."""
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {process}".encode()).digest()[:8], "big")


def _usable(device: torch.device | str, cell: str) -> torch.device:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that torch once had
            found = torch.device(device)
            torch.zeros(1, device=found).cpu()
    except (AssertionError, ImportError, RuntimeError) as error:  # torch has no one class for it
        raise InputError(f"device must be the CPU or one that torch sees, got {device}; try cpu") from error
    if cell == "lstm" and found.type != "cpu" and not (found.type == "cuda" and gpu_is_usable()):
        raise InputError(f"device must be one that fusedlstm has kernels for, got {device}; try cpu, or cell torch")
    return found


class Trainer:
    """One training run: model, optimizer and place in the text.

    Random numbers depend only on seed, step and process, so several runs in one process do not affect each other.
    In a process group every process constructs the same Trainer and calls the same methods; each trains its own part
    of the batch.

    Args:
        config: what to train.
        device: any device of torch, or with several processes the CPU. A checkpoint may be resumed on another one.

    Attributes:
        corpus: the text, split.
        model: the model in training.
        step: updates made so far.
        losses: for each update the loss before it, nats per token over the windows of all processes.

    Raises:
        OSError: a file of ``config.data`` cannot be read.
        ValueError: the text is too short for one window, the batch cannot be divided evenly among the processes, the
            device of several processes is not the CPU, torch does not see the device, fusedlstm has no kernels for it,
            or it has too little memory.

    Example:
        >>> trainer = Trainer(TrainConfig(hidden_size=16, window=8, batch_size=2, steps=3))
        >>> len(trainer.run())
        3
    """

    def __init__(self, config: TrainConfig, device: torch.device | str = "cpu") -> None:
        self._device = _usable(device, config.cell)
        if parallel.size() > 1 and self._device.type != "cpu":
            raise InputError(f"device must be cpu with {parallel.size()} processes, got {device}; use one process")
        if config.batch_size % parallel.size():
            raise InputError(
                f"batch_size must be a multiple of the {parallel.size()} processes, got {config.batch_size}; change"
                " one of them"
            )
        self.config = config
        self.corpus = load_corpus(config.data, config.vocabulary, config.max_words, config.held_out)
        needed = config.window * config.batch_size + 1
        if len(self.corpus.train) < needed:
            raise InputError(
                f"data must hold at least {needed:,} training tokens (window {config.window} x batch size "
                f"{config.batch_size} + 1), got {len(self.corpus.train):,}; give more text, a smaller window or batch"
            )
        memory.require(config, self.corpus.vocabulary.size, config.batch_size // parallel.size(), self._device)
        self._batches = Batches(self.corpus.train.to(self._device), config.window, config.batch_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = config.build_model(self.corpus.vocabulary.size).to(self._device)
        self._called_model = parallel.data_parallel(self.model)
        self._optimizer = torch.optim.Adam(self.model.parameters(), fused=True)
        self.step = 0
        self.losses: list[float] = []
        self._position = 0
        self._hidden: State | None = None

    def train_step(self) -> float:
        """Make one update.

        Returns:
            The loss before it, in nats per token.

        Raises:
            FloatingPointError: the loss is not finite; no update was made.
        """
        x, target = (parallel.own_part(part) for part in self._batches[self._position])
        self.model.train()
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(_seed_of_step(self.config.seed, self.step, parallel.rank()))
            logits, hidden = self._called_model(x, self._hidden)
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        value = parallel.total(loss.item())[0] / parallel.size()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"learning_rate must keep the loss finite, got {value} at step {self.step + 1} "
                f"with {self.config.learning_rate:g}; choose a smaller one"
            )
        self._optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.config.steps, self.config.learning_rate)
        self._optimizer.step()
        self.step += 1
        self.losses.append(value)
        self._position = (self._position + 1) % len(self._batches)
        self._hidden = detach(hidden) if self._position else None
        return value

    def run(
        self,
        until: int | None = None,
        on_step: Callable[[int, float], object] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> list[tuple[int, float]]:
        """Train up to a step.

        Args:
            until: step to reach; None means all of ``config.steps``.
            on_step: called with step and loss after each update.
            stop: called after each update; if it returns True in any process, the run ends early.

        Returns:
            Step and loss (nats per token) of each update made.
        """
        history: list[tuple[int, float]] = []
        last = self.config.steps if until is None else min(until, self.config.steps)
        while self.step < last:
            loss = self.train_step()
            history.append((self.step, loss))
            if on_step is not None:
                on_step(self.step, loss)
            if stop is not None and parallel.any_process(stop()):
                break
        return history

    def evaluate(self) -> Evaluation:
        """Measure the model on the held-out part."""
        corpus, config = self.corpus, self.config
        return evaluate(self.model, corpus.held_out, corpus.held_out_bytes, config.window, config.batch_size)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything that ``resume`` needs to one file, atomically; of several processes only process 0 writes.

        Args:
            path: the file to create or replace.

        Raises:
            OSError: the file cannot be written; a previous one is untouched.
            FloatingPointError: a weight is not finite; the previous file is untouched.
        """
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, moments in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
        if self._hidden is not None:
            states = (self._hidden,) if isinstance(self._hidden, Tensor) else self._hidden
            tensors |= {f"hidden.{index}": parallel.gather_parts(tensor) for index, tensor in enumerate(states)}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise FloatingPointError(
                f"learning_rate must keep the weights finite, got others at step {self.step} "
                f"with {self.config.learning_rate:g}; choose a smaller one"
            )
        corpus = self.corpus
        if parallel.rank() == 0:
            checkpoint.save(
                path, Checkpoint(self.config, corpus.vocabulary, self.step, self._position, corpus.digest, tensors)
            )

    @classmethod
    def resume(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu", **changes: Any) -> Trainer:
        """Continue the run of a checkpoint: later losses and weights are those of an uninterrupted run.

        With another number of processes dropout's masks and the rounding of sums differ.

        Args:
            path: a file that ``save`` wrote.
            device: where to go on.
            changes: fields of TrainConfig. ``steps`` may grow (the learning rate then follows the longer schedule) and
                ``data`` may name the same text elsewhere; any other must equal the checkpoint's.

        Returns:
            The run, ready to go on.

        Raises:
            OSError: the checkpoint or its text cannot be read.
            CheckpointError: the file is not a usable checkpoint.
            ValueError: a field of ``changes``, or the text, differs from the checkpoint's.
        """
        path = os.fspath(path)
        stored = checkpoint.load(path)
        for name, value in changes.items():
            if name not in _MAY_CHANGE_ON_RESUME and value != getattr(stored.config, name):
                raise InputError(
                    f"{name} must be {getattr(stored.config, name)} as in the checkpoint {path}, got {value}; "
                    "leave it out, or start a new run in another file"
                )
        trainer = cls(replace(stored.config, **changes), device)
        if trainer.corpus.digest != stored.digest:
            raise InputError(f"data must be the text that {path} was trained on, got another; give the same files")
        due = stored.step % len(trainer._batches)
        if stored.position != due:
            raise CheckpointError(
                f"checkpoint must be at window {due} of the text at step {stored.step}, got {path} with position "
                f"{stored.position}; give another file"
            )
        trainer._restore(stored)
        return trainer

    def _restore(self, stored: Checkpoint) -> None:
        self.model.load_state_dict(stored.group("model"))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in stored.group("optimizer").items():
            index, _, moment = name.partition(".")
            moments.setdefault(int(index), {})[moment] = tensor
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": moments})
        states = [parallel.own_part(tensor).to(self._device) for _, tensor in sorted(stored.group("hidden").items())]
        if states:
            self._hidden = states[0] if len(states) == 1 else (states[0], states[1])
        self.losses = stored.tensors["losses"].tolist()
        self.step, self._position = stored.step, stored.position
