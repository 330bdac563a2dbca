# The grid that maps are pooled to: which cells each of its cells covers, and where it lies.
"""Geometry of ``--grid``.

A grid divides a map into rows and columns of equal size. Where a cell of the map lies on the edge between two of them,
each takes its share of it; so a grid has a stride and an offset, as maps have, whatever the sizes are. A map with fewer
rows or columns keeps those.
"""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from featx.images.cells import SAME, Array, spacing_of
from featx.images.frame import Frame
from featx.values import Level, Spacing

Size = tuple[int, int]


def cells_of(length: int, most: int) -> int:
    """Return how many rows, or columns, a grid of at most so many makes of a map's."""
    return min(length, most)


def pooled(level: Level, size: Size | None, grid: Size) -> Level:
    """Return a level as it is on a grid.

    Parameters
    ----------
    level : Level
        As the network has it.
    size : (int, int) or None
        Height and width of its map; None where photos have sizes of their own: the level is returned as it is.
    grid : (int, int)
        The most rows and columns.
    """
    if size is None:
        return level
    down, across = (length / cells_of(length, most) for length, most in zip(size, grid, strict=True))
    made = replace(
        level,
        height=cells_of(size[0], grid[0]),
        width=cells_of(size[1], grid[1]),
        offset_spread=_scaled(level.offset_spread, 1 / down, 1 / across),
        ratio=level.ratio and (level.ratio[0] * down, level.ratio[1] * across),
    )
    if level.stride is None:
        return made if (down, across) == (1, 1) else replace(made, offset=None)
    stride = _scaled(level.stride, down, across)
    if level.offset is None:
        return replace(made, stride=stride)
    offset, step = spacing_of(level)
    centre = (offset[0] + (down - 1) / 2 * step[0], offset[1] + (across - 1) / 2 * step[1])
    return replace(made, stride=stride, offset=_spacing(*centre))


def shares(length: int, most: int) -> tuple[Array, Array]:
    """Divide the rows, or columns, of a map into equal parts.

    Returns
    -------
    places : array
        (n, k) int64: the cells that each of the n parts touches; where it touches fewer than k, the last are repeated.
    shares : array
        (n, k) float64: how much of each it covers, in n-ths of a cell, which are whole numbers; 0 for what is repeated.
    """
    count = cells_of(length, most)
    part = np.arange(count)
    first, end = part * length // count, -(-(part + 1) * length // count)
    places = first[:, None] + np.arange((end - first).max())
    left = np.maximum(places * count, (part * length)[:, None])
    right = np.minimum((places + 1) * count, ((part + 1) * length)[:, None])
    return np.minimum(places, length - 1), np.maximum(right - left, 0).astype(np.float64)


def on_photo(frame: Frame, level: Level, size: Size) -> tuple[slice, slice]:
    """Find the rows and columns of a map that are centred on the photo, and not on the bars beside it.

    All of them where there are no bars, where it is not known where the cells lie, or where all lie on bars.
    """
    if level.offset is None or level.stride is None:
        return slice(0, size[0]), slice(0, size[1])
    offset, stride = spacing_of(level)
    first = frame.to_input(-0.5, -0.5)
    last = frame.to_input(frame.original[0] - 0.5, frame.original[1] - 0.5)
    rows, columns = (
        _between(offset[way] + np.arange(size[way]) * stride[way], first[axis], last[axis], frame.input[axis])
        for way, axis in ((0, 1), (1, 0))
    )
    return rows, columns


def _between(centres: Array, first: float, last: float, length: int) -> slice:
    """Return the cells between the edges of a photo; an edge at the end of the input, or beyond, leaves none out."""
    low = first - SAME if first > -0.5 + SAME else -np.inf
    high = last + SAME if last < length - 0.5 - SAME else np.inf
    places = np.flatnonzero((centres >= low) & (centres <= high))
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, len(centres))


def _scaled(value: Spacing, down: float, across: float) -> Spacing:
    vertical, horizontal = value if isinstance(value, tuple) else (value, value)
    return _spacing(vertical * down, horizontal * across)


def _spacing(down: float, across: float) -> Spacing:
    """Write a pair as one number where both are equal, and as a whole one where it is."""
    pair = tuple(int(value) if float(value).is_integer() else float(value) for value in (down, across))
    return pair[0] if pair[0] == pair[1] else (pair[0], pair[1])
