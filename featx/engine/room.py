# Room: a limit on the memory that batches of photos take together, and what a batch of each size needs.
"""Bounded memory where every photo has its own size.

What a pass needs is measured on the meta device. Sizes are rounded up first, so that few of them are measured.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featx.engine import resources
from featx.engine.batching import AHEAD_BYTES
from featx.images.native import filled_up
from featx.text import amount_of

if TYPE_CHECKING:
    import torch

    from featx.models.pyramid import Blueprint
    from featx.requests import Job

# Sides are rounded up by at most an eighth.
FINENESS = 8

# Bytes left for decoders and everything else.
SPARE = 500_000_000

# A side that does not fit is multiplied by this until it does.
SHORTER = 0.9


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a batch takes: until its pass ends, and then until its arrays are written."""

    passing: int
    arrays: int

    @property
    def all(self) -> int:
        """Bytes at the peak."""
        return self.passing + self.arrays


class Needs:
    """The memory that batches of images of any size need.

    Parameters
    ----------
    blueprint : Blueprint
        The pyramid.
    batch_size : int
        Images in a batch.
    on_cpu : bool
        Whether passes themselves take this machine's memory, or only the arrays that they return.
    """

    def __init__(self, blueprint: Blueprint, batch_size: int, *, on_cpu: bool) -> None:
        self._blueprint, self._batch_size, self._on_cpu = blueprint, batch_size, on_cpu

    def __call__(self, height: int, width: int) -> Need:
        """Return what a batch of images of a size needs; nothing where the network cannot be measured."""
        size = self._rounded(height), self._rounded(width)
        found = self._blueprint.footprint(self._batch_size, size)
        pixels = self._batch_size * size[0] * size[1] * 3
        maps = found.memory if found and self._on_cpu else 0
        arrays = 4 * sum(map(math.prod, found.shapes)) if found else 0
        return Need(maps + pixels * (1 + 4 + 4), arrays)

    def longest_side(self, height: int, width: int, room: int) -> int | None:
        """Return the longest side, in pixels, to which images can be reduced for a batch to fit; None if none does."""
        feed = self._blueprint.description.input
        longer = max(height, width)
        side = longer * min(1.0, math.sqrt(room / max(1, self(height, width).all)))
        while side >= (feed.multiple or 1):
            size = (max(1, round(height * side / longer)), max(1, round(width * side / longer)))
            if self(*filled_up(size, feed.multiple or 1, feed.least)).all <= room:
                return int(side)
            side *= SHORTER
        return None

    def _rounded(self, side: int) -> int:
        multiple = self._blueprint.description.input.multiple or 1
        step = max(multiple, (1 << (side.bit_length() - 1)) // FINENESS)
        return -(-(-(-side // step) * step) // multiple) * multiple


class Room:
    """Memory that batches take, in their order, and give back when they are done.

    Parameters
    ----------
    needs : Needs or None
        What each batch needs; None if memory is not limited.
    total : int or None
        Bytes available; None if that is not known, or memory is not limited.
    """

    def __init__(self, needs: Needs | None = None, total: int | None = None) -> None:
        self._needs, self._total = needs, total
        self._taken = 0
        self._closed = False
        self._changed = threading.Condition()

    def refusal(self, height: int, width: int, *, tiled: bool = False) -> str:
        """Say why a batch of images, or tiles, of a size cannot be computed, and what would help; "" if it can."""
        if self._needs is None or self._total is None:
            return ""
        need = self._needs(height, width)
        if need.all <= self._total:
            return ""
        side = None if tiled else self._needs.longest_side(height, width, self._total)
        help_ = "; a smaller --tile or --halo takes less" if tiled else f"; --max-side {side} fits" if side else ""
        return (
            f"a pass of {width} x {height} pixels takes about {amount_of(need.all)} of memory, but "
            f"{amount_of(self._total)} are available{help_}"
        )

    def passes(self, height: int, width: int, most: int) -> int:
        """Return how many passes of batches of images of a size fit at a time: one at least."""
        if self._needs is None or self._total is None:
            return most
        return min(most, max(1, self._total // max(1, self._needs(height, width).all)))

    def take(self, height: int, width: int, passes: int = 1, more: Callable[[int], int] = lambda _: 0) -> Need:
        """Wait until there is enough memory for passes of batches of images of a size, and take it.

        `more` says what else is taken, given the bytes of the arrays of one pass.
        """
        if self._needs is None or self._total is None:
            return Need(0, 0)
        one, total = self._needs(height, width), self._total
        need = Need(one.passing * passes + more(one.arrays), one.arrays * passes)
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._taken or self._taken + need.all <= total)
            self._taken += need.all
        return need

    def give_back(self, amount: int) -> None:
        """Give bytes back."""
        with self._changed:
            self._taken -= amount
            self._changed.notify_all()

    def close(self) -> None:
        """Let everyone who waits go on, since the run ends."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def shared(job: Job, blueprint: Blueprint, batch_size: int, device: torch.device, share: float = 1.0) -> Room | None:
    """Return the memory that a run's photos share if each has its own size; None if all have the same size.

    Where several processes of a run are on a machine, each takes its share of what the machine has.
    """
    if job.fit != "native":
        return None
    if job.force:
        return Room()
    there = available()
    waiting = AHEAD_BYTES if batch_size > 1 else 0  # photos that gather
    total = None if there is None else max(0, int(there * share) - waiting)
    return Room(Needs(blueprint, batch_size, on_cpu=device.type == "cpu"), total)


def available() -> int | None:
    """Return the bytes that photos may take together; None where the system does not say."""
    left = resources.memory().left
    return None if left is None else max(0, left - SPARE)
