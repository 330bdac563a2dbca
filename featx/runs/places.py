# Features at points and in boxes of a photo, from the maps of a run.
"""What `featx.runs.reading.Run` and ``featx sample`` do with one photo's maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from featx.errors import UsageError
from featx.images import cells
from featx.images import regions as of_map
from featx.images.frame import Frame
from featx.runs.formats import Array
from featx.values import Level

# A level by its index, by the name of its array, or itself.
Named = int | str | Level
Levels = Named | Sequence[Named] | None


def chosen(maps: Sequence[Level], levels: Levels) -> list[Level]:
    """Find maps of a run by what names them; None means all.

    Raises
    ------
    UsageError
        If the run has no maps, or lacks one of those named.
    """
    have = {level.key: level for level in maps}
    if not have:
        raise UsageError("The run has no maps", "Extract it without --no-maps")
    if levels is None:
        return list(maps)
    named = levels if isinstance(levels, Sequence) and not isinstance(levels, str) else [levels]
    keys = [_key(each) for each in named]
    if absent := [key for key in keys if key not in have]:
        raise UsageError(f"The run has no map {absent[0]}", f"It has {', '.join(have)}")
    return [have[key] for key in keys]


def sample(arrays: Mapping[str, Array], frame: Frame, levels: Sequence[Level], points: ArrayLike) -> dict[str, Array]:
    """Sample maps at points of their photo; see `featx.runs.reading.Run.sample`."""
    given = _rows(points, 2)
    x1, y1, x2, y2 = cells.seen(frame)
    x, y = given.T + 0.5
    unseen = ~((x1 <= x) & (x <= x2) & (y1 <= y) & (y <= y2))
    given[unseen] = np.nan
    return {level.key: of_map.sample(arrays[level.key], *cells.to_cell(frame, level, *given.T)) for level in levels}


def regions(
    arrays: Mapping[str, Array], frame: Frame, levels: Sequence[Level], boxes: ArrayLike, size: tuple[int, int]
) -> dict[str, Array]:
    """Average maps in boxes of their photo; see `featx.runs.reading.Run.regions`."""
    import torch

    inside = cells.cut(frame, _rows(boxes, 4))
    found = {}
    for level in levels:
        values = torch.from_numpy(np.array(arrays[level.key]))  # torch takes no read-only arrays
        found[level.key] = of_map.regions(values, cells.boxes_in_cells(frame, level, inside), size).numpy()
    return found


def _key(level: Named) -> str:
    return level.key if isinstance(level, Level) else level if isinstance(level, str) else f"level_{level}"


def _rows(places: ArrayLike, length: int) -> Array:
    """Return a copy of points or boxes as float64.

    Raises
    ------
    UsageError
        If they are not (N, length).
    """
    given = np.array(places, np.float64)
    if given.size == 0:
        return given.reshape(0, length)
    if given.ndim != 2 or given.shape[1] != length:
        what = "points (x, y), an array (P, 2)" if length == 2 else "boxes (x1, y1, x2, y2), an array (B, 4)"
        raise UsageError(f"Expected {what}, not one of shape {given.shape}", "Give one row for each")
    return given
