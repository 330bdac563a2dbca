# Columns of a large picture's maps, side by side until those of the other tiles in their row are there.
"""What waits between the tiles of a row: in memory, or in a file where that is much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from featx.engine.tiling import AT_A_TIME
from featx.images.cells import Array
from featx.runs.formats.large import Nameless, Spilled


class Rows(Protocol):
    """What takes the rows of a map."""

    def put(self, row: int, values: Array) -> None:
        """Take (C, rows, W), from one row on; the next are those below."""

    def finish(self) -> list[tuple[Any, bool]]:
        """Return what was made of the whole map, and of each array whether all of it is finite."""


class Beside:
    """What is made of the columns of a map, side by side until all are there; in a file where that is much.

    Parameters
    ----------
    folder : Path or None
        Where the file would be; None keeps all in memory.
    most : int
        Bytes of a part that memory holds.
    """

    def __init__(self, folder: Path | None, most: int) -> None:
        self._folder, self._most = folder, most
        self._file: Nameless | None = None
        self._end = 0

    def part(self) -> Part:
        """Make what keeps some of the columns."""
        return Part(self._kept)

    def clear(self) -> None:
        """Forget what is in the file."""
        if self._file:
            self._file.cut(0)
            self._end = 0

    def _kept(self, values: Array) -> Array | Spilled:
        if self._folder is None or values.nbytes <= self._most:
            return np.array(values)  # what they are a part of may be large
        self._file = self._file or Nameless(self._folder)
        spilled = Spilled(self._file, self._end, values)
        self._end = spilled.end
        return spilled


class Part:
    """Keep what is made of some columns of a map until that of the others is there."""

    def __init__(self, kept: Callable[[Array], Array | Spilled]) -> None:
        self._kept = kept
        self._made: list[tuple[int, Array | Spilled]] = []

    def put(self, row: int, values: Array) -> None:
        """Keep rows."""
        self._made.append((row, self._kept(values)))

    def taken(self) -> list[tuple[int, Array | Spilled]]:
        """Return what came since last time."""
        made, self._made = self._made, []
        return made

    def finish(self) -> list[tuple[Any, bool]]:
        """Return nothing: others do."""
        return []


def hand_on(row: int, parts: Sequence[Array | Spilled], target: Rows) -> None:
    """Hand on rows whose columns are in several parts, a few at a time."""
    step = max(1, AT_A_TIME // sum(part[:, :1].nbytes for part in parts))
    for first in range(0, parts[0].shape[1], step):
        some = [part[:, first : first + step] for part in parts]
        target.put(row + first, np.concatenate(some, axis=2) if len(some) > 1 else some[0])
