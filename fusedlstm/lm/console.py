"""What a training run shows on a terminal, and how a signal ends it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType

from tqdm import tqdm

_LOG_SECONDS = 10.0
_RATE_STEPS = 50
_STOP_SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


class Progress:
    """A progress bar with loss and speed on a terminal, a line every ten seconds elsewhere; on standard error.

    Args:
        steps: steps of the whole run.
        done: steps made before.
        tokens_per_step: tokens of a step, to compute the speed.
        shown: whether anything is printed; of several processes only process 0 prints.

    Attributes:
        lost: whether the output could not be written; its reader may have exited. Nothing is printed from then on.

    Example:
        >>> with Progress(steps=2, done=0, tokens_per_step=64) as progress:
        ...     progress.update(1, loss=5.5)
        ...     progress.update(2, loss=5.4)
    """

    def __init__(self, steps: int, done: int, tokens_per_step: int, shown: bool = True) -> None:
        disable = None if shown else True  # None: disabled unless it is a terminal
        self._bar = tqdm(total=steps, initial=done, unit="step", disable=disable, file=sys.stderr, dynamic_ncols=True)
        self.lost = False
        self._shown = shown
        self._steps = steps
        self._tokens_per_step = tokens_per_step
        self._times: deque[float] = deque([time.monotonic()], maxlen=_RATE_STEPS + 1)
        self._logged = -_LOG_SECONDS

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._output():
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
        due = self._shown and self._bar.disable and (now - self._logged >= _LOG_SECONDS or step == self._steps)
        with self._output():
            self._bar.update()
            if due:
                self._logged = now
                print(f"step {step}/{self._steps}  loss {loss:.4f}  {rate:,.0f} tokens/s", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print a line to standard output without tearing the bar."""
        if self._shown:
            with self._output(), tqdm.external_write_mode():
                print(text, flush=True)

    @contextmanager
    def _output(self) -> Iterator[None]:
        """An error of the output must not end the training before it has saved."""
        try:
            yield
        except OSError:
            self.lost, self._shown, self._bar.disable = True, False, True


class Interrupt:
    """Turns the first Ctrl-C, SIGTERM or SIGHUP into a request to stop; the second raises KeyboardInterrupt at once.

    A signal that the process was started to ignore stays ignored, as SIGHUP does under nohup.

    Args:
        shown: whether the request is confirmed on standard error.

    Attributes:
        requested: whether a stop was requested.

    Example:
        >>> with Interrupt() as interrupt:
        ...     interrupt.requested
        False
    """

    def __init__(self, shown: bool = True) -> None:
        self.requested = False
        self._shown = shown

    def __enter__(self) -> Interrupt:
        numbers = [number for number in _STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._request) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        for each in self._previous:
            signal.signal(each, signal.default_int_handler)
        if self._shown:
            # Not print: the signal may interrupt a write to a buffered stream.
            with suppress(OSError):
                os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")
