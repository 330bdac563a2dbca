# Stopping: what a signal requests, and how long running work has to comply.
"""SIGINT, SIGTERM and SIGHUP."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
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
    """

    def __init__(self) -> None:
        self.signal = 0
        self._gentle = False

    def listen(self) -> None:
        """Handle the signals from now on; for programs, not for libraries."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                signal.signal(number, self._handle)

    def asked(self) -> bool:
        """Whether there was a signal."""
        return bool(self.signal)

    @contextmanager
    def gently(self) -> Iterator[None]:
        """Do work that checks `asked` itself."""
        self._gentle = True
        try:
            yield
        finally:
            self._gentle = False
            if self.signal:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGALRM:
            raise InterruptedByError
        if self.signal:
            os._exit(128 + number)
        self.signal = number
        if not self._gentle:
            raise InterruptedByError
        signal.setitimer(signal.ITIMER_REAL, GRACE)
