"""What a training run shows on a terminal, and how Ctrl-C ends it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque
from types import FrameType, TracebackType

from tqdm import tqdm

_LOG_SECONDS = 10.0
_RATE_STEPS = 50


class Progress:
    """A progress bar with loss and speed on a terminal, a line every ten seconds elsewhere; on standard error.

    Args:
        steps: steps of the whole run.
        done: steps made before.
        tokens_per_step: for the speed.

    Example:
        >>> with Progress(steps=2, done=0, tokens_per_step=64) as progress:
        ...     progress.update(1, loss=5.5)
        ...     progress.update(2, loss=5.4)
    """

    def __init__(self, steps: int, done: int, tokens_per_step: int) -> None:
        self._bar = tqdm(total=steps, initial=done, unit="step", disable=None, file=sys.stderr, dynamic_ncols=True)
        self._steps = steps
        self._tokens_per_step = tokens_per_step
        self._times: deque[float] = deque([time.monotonic()], maxlen=_RATE_STEPS + 1)
        self._logged = -_LOG_SECONDS

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def update(self, step: int, loss: float) -> None:
        """Count one step.

        Args:
            step: steps made so far.
            loss: nats per token of this one.
        """
        now = time.monotonic()
        self._times.append(now)
        rate = self._tokens_per_step * (len(self._times) - 1) / max(now - self._times[0], 1e-9)
        self._bar.set_postfix_str(f"loss {loss:.4f}, {rate:,.0f} tokens/s", refresh=False)
        self._bar.update()
        if self._bar.disable and (now - self._logged >= _LOG_SECONDS or step == self._steps):
            self._logged = now
            print(f"step {step}/{self._steps}  loss {loss:.4f}  {rate:,.0f} tokens/s", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print a line to standard output without tearing the bar."""
        with tqdm.external_write_mode():
            print(text, flush=True)


class Interrupt:
    """Turns the first Ctrl-C into a wish to stop; the second one raises KeyboardInterrupt at once.

    Attributes:
        requested: whether Ctrl-C was pressed.

    Example:
        >>> with Interrupt() as interrupt:
        ...     interrupt.requested
        False
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Interrupt:
        self._previous = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Not print: a buffered stream may be in the middle of a write when the signal comes.
        os.write(2, b"\nstopping after this step and saving; Ctrl-C again stops at once\n")
