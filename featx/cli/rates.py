# Rates: the speed of a run and the time left, as shown while it goes on.
"""Speeds over the last half minute, since the first batches and a busy spell say little about the rest."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from featx.text import images
from featx.values import Outcome

# Seconds over which a speed is measured, at most.
WINDOW = 30.0

# Seconds between two images of one group, at most.
SAME = 0.05

# Batches that must be done before a speed is shown: the first includes the set-up.
BATCHES = 2


class Rates:
    """Counts what is finished, and when.

    Images are committed in groups, so the speed is measured from group to group, as if all groups were of one size.

    Parameters
    ----------
    planned : int
        Images to compute.
    batch_size : int
        Images in a pass.
    now : callable
        Returns the time, in seconds.
    """

    def __init__(self, planned: int = 0, batch_size: int = 1, now: Callable[[], float] = time.monotonic) -> None:
        self.finished = self.failed = 0
        self._planned, self._least, self._now = planned, BATCHES * batch_size, now
        self._bytes, self._latest = 0, 0.0
        # When each group was committed, and the images and bytes before it.
        self._groups: deque[tuple[float, int, int]] = deque()

    def enter(self, outcome: Outcome) -> None:
        """Count an image."""
        now = self._now()
        if not self._groups or now - self._latest > SAME:
            self._groups.append((now, self.finished, self._bytes))
            while len(self._groups) > 2 and now - self._groups[1][0] >= WINDOW:
                self._groups.popleft()
        self._latest = now
        self.finished += 1
        self.failed += not outcome.done
        self._bytes += outcome.bytes

    def text(self) -> str:
        """Return the speed, and how many failed; nothing while it is too early to tell."""
        speeds = self._speeds()
        shown = [f"{speeds[0]:.1f} images/s, {speeds[1] / 1e6:.1f} MB/s"] if speeds else []
        return ", ".join([*shown, *([f"{self.failed} failed"] if self.failed else [])])

    def left(self) -> str:
        """Return the time left, such as ``3:20 left``; nothing while it is too early to tell."""
        seconds = self.seconds_left()
        return "" if seconds is None else f"{clock(seconds)} left"

    def seconds_left(self) -> float | None:
        """Estimate the seconds until all is done; None while it is too early to tell, or nothing is left."""
        speeds = self._speeds()
        if not speeds or not speeds[0] or self.finished >= self._planned:
            return None
        before, (since, ahead, _) = self._groups[-2][1], self._groups[-1]
        finished = max(self.finished, 2 * ahead - before)  # with the rest of this group
        return max(0.0, (self._planned - finished) / speeds[0] - (self._now() - since))

    def line(self) -> str:
        """Return the count, the speed and the time left in one line."""
        return ", ".join(
            part for part in (f"{self.finished} of {images(self._planned)}", self.text(), self.left()) if part
        )

    def _speeds(self) -> tuple[float, float] | None:
        """Images and bytes per second."""
        if len(self._groups) < 2 or self.finished < self._least:
            return None
        (began, first, size), (ended, last, total) = self._groups[0], self._groups[-1]
        return (last - first) / (ended - began), (total - size) / (ended - began)


def clock(seconds: float) -> str:
    """Format a duration: ``0:09``, ``12:40``, ``3:05:00``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
