# Tiles: windows of a picture that go through the network one by one, and which cells of the map each one gives.
"""Where tiles lie, and how their maps are put together: numbers alone, no pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Size = tuple[int, int]


class Span(NamedTuple):
    """A tile along one axis, in pixels of the input: it is responsible for some, and seen in a window around them.

    Attributes
    ----------
    start, stop : int
        The pixels whose cells it gives.
    first, last : int
        The window that goes through the network.
    """

    start: int
    stop: int
    first: int
    last: int


class Share(NamedTuple):
    """The cells of a map's axis that a tile contributes to.

    Attributes
    ----------
    start, stop : int
        The first, and the one behind the last.
    skipped : int
        Cells of the tile's own map that come before.
    weights : ndarray or None
        (stop - start,) float32: how much it counts; those of all tiles add up to 1. None where it alone counts.
    """

    start: int
    stop: int
    skipped: int
    weights: np.ndarray[Any, np.dtype[np.float32]] | None


@dataclass(frozen=True, slots=True)
class Tiling:
    """How pictures are cut into tiles.

    Attributes
    ----------
    tile, halo : int
        Side of a tile, and of what is seen around it, in pixels of the input: multiples that the network takes.
    reach : int or None
        Pixels beyond a tile that its cells depend on; None if they depend on the whole picture.
    mpp : float or None
        Microns a pixel at which slides are read; None takes all pixels.
    """

    tile: int
    halo: int
    reach: int | None
    mpp: float | None = None

    @property
    def blends(self) -> bool:
        """Whether neighbours differ where they meet, so that they have to be blended."""
        return self.reach is None or self.halo < self.reach

    def spans(self, side: int) -> list[Span]:
        """Cut an axis; a single span means that windows would be no smaller than all of it.

        All windows have one length, so that passes are alike: those at the picture's ends extend further inwards.
        """
        starts = range(0, side, self.tile)
        windows = [(max(0, start - self.halo), min(side, start + self.tile + self.halo)) for start in starts]
        longest = max(last - first for first, last in windows)
        if longest >= side:
            return [Span(0, side, 0, side)]
        firsts = [min(first, side - longest) for first, _ in windows]
        return [
            Span(start, min(side, start + self.tile), first, first + longest)
            for start, first in zip(starts, firsts, strict=True)
        ]

    def window(self, size: Size) -> Size:
        """Return the size of the windows of an input of a size, both (height, width)."""
        height, width = (self.spans(side)[0].last for side in size)  # the first window begins at 0
        return height, width

    def cuts(self, size: Size) -> bool:
        """Whether an input of (height, width) has several tiles."""
        return self.window(size) != tuple(size)

    def count(self, size: Size) -> int:
        """Return how many tiles an input of (height, width) has."""
        return len(self.spans(size[0])) * len(self.spans(size[1]))

    def shares(self, side: int, cells: int) -> list[Share]:
        """Return what each span of an axis gives of a map with so many cells along it."""
        spans = self.spans(side)
        if len(spans) == 1 or not (self.blends and self.halo):
            bounds = ((_cell(span.start, side, cells), _cell(span.stop, side, cells)) for span in spans)
            return [
                Share(start, stop, start - _cell(span.first, side, cells), None)
                for span, (start, stop) in zip(spans, bounds, strict=True)
            ]
        counts = self._weights(spans, side, cells)
        found = []
        for span, weights in zip(spans, counts, strict=True):
            start, last = np.flatnonzero(weights)[[0, -1]].tolist()
            found.append(Share(start, last + 1, start - _cell(span.first, side, cells), weights[start : last + 1]))
        return found

    def _weights(self, spans: Sequence[Span], side: int, cells: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Weigh tiles by a raised cosine across each border between two of them, as wide as both see beyond it."""
        centres = (np.arange(cells) + 0.5) * side / cells
        weights = np.ones((len(spans), cells))
        for number, after in enumerate(spans[1:]):
            rising = (1 + np.sin(np.pi / 2 * np.clip((centres - after.start) / self.halo, -1, 1))) / 2
            weights[: number + 1] *= 1 - rising
            weights[number + 1 :] *= rising
        weights /= weights.sum(axis=0)
        return weights.astype(np.float32)

    def part(self, size: Size) -> tuple[Size, Size]:
        """Choose a part of an input of a size that is large enough to have two tiles, near the middle.

        Returns
        -------
        start, size : (int, int)
            Of the part: rows and columns, in pixels.
        """
        several = [len(self.spans(side)) > 1 for side in size]
        along = 1 if several[1] else 0
        enough = 2 * self.tile + (2 * self.halo if self.halo >= self.tile else 0)
        sides = [min(side, enough if axis == along else self.tile) for axis, side in enumerate(size)]
        starts = [(whole - side) // 2 // self.tile * self.tile for whole, side in zip(size, sides, strict=True)]
        return (starts[0], starts[1]), (sides[0], sides[1])


def _cell(pixel: int, side: int, cells: int) -> int:
    """Return the cell that begins at a pixel; tiles begin where cells of all maps do."""
    return pixel * cells // side
