# Stopping: what a signal requests, and how long running work has to comply.
"""SIGINT, SIGTERM and SIGHUP."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Seconds to finish what is in flight; the process should end within five.
GRACE = 4.0


class InterruptedByError(BaseException):
    """A signal that ends the current work; `except Exception` does not catch it."""


class Stop:
    """A request to stop.

    The first signal ends whatever is running, by an exception; inside `gently`, it is only recorded, so that the caller
    can finish what is in flight, and raised if that takes too long. A second signal ends the process.

    Attributes
    ----------
    signal : int
        The number of the signal; 0 if there was none.
    on_first, on_second : callable
        Called by the signal's handler, which may interrupt anything: the first, inside `gently`, with the number of
        passes that are being finished; the second before the process ends.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.on_first: Callable[[int], None] = lambda _: None
        self.on_second: Callable[[], None] = lambda: None
        self._passes: Callable[[], int] | None = None

    def listen(self) -> None:
        """Handle the signals from now on; for programs, not for libraries."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                signal.signal(number, self._handle)

    def asked(self) -> bool:
        """Whether there was a signal."""
        return bool(self.signal)

    @contextmanager
    def gently(self, passes: Callable[[], int]) -> Iterator[None]:
        """Do work that checks `asked` itself; `passes` tells how many forward passes are under way."""
        self._passes = passes
        try:
            yield
        finally:
            self._passes = None
            if self.signal:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGALRM:
            raise InterruptedByError
        if self.signal:
            self.on_second()
            os._exit(128 + number)
        self.signal = number
        if self._passes is None:
            raise InterruptedByError
        signal.setitimer(signal.ITIMER_REAL, GRACE)
        self.on_first(self._passes())
