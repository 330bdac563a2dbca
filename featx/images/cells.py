# Cells and pixels: where a cell of a level lies in the photo, which cells lie on it, and boxes in cells.
"""Geometry of the cells of a level, from its `Level` and the `Frame` of a photo; takes numbers or numpy arrays.

Points are pixel centres at integers: a photo of width `w` spans -0.5 … w - 0.5. Boxes are edges, as in COCO: the same
photo spans 0 … w, and an edge is its point plus 0.5. Rows and columns may be fractions: cell `i` is centred at `i`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from featx.errors import FeatxError
from featx.images.frame import Frame, Pair
from featx.values import Level, Spacing

Array = np.ndarray[Any, np.dtype[Any]]

# Coordinates that differ by less are equal: the difference comes from rounding.
SAME = 1e-6


def spacing_of(level: Level) -> tuple[Pair, Pair]:
    """Return the offset and the stride of a level, (y, x) each.

    Raises
    ------
    FeatxError
        If one of them is unknown.
    """
    if level.offset is None or level.stride is None:
        raise FeatxError(
            f"The {'offset' if level.offset is None else 'stride'} of {level.key} is unknown, so its cells cannot be "
            "found in the photo",
            "Choose a level whose offset and stride are known",
        )
    return _down_across(level.offset), _down_across(level.stride)


def to_pixel(frame: Frame, level: Level, row: ArrayLike, column: ArrayLike) -> tuple[Array, Array]:
    """Find the points of the photo at which cells are centred.

    Parameters
    ----------
    row, column : array_like
        Any shapes that numpy broadcasts; fractions lie between cells.

    Returns
    -------
    x, y : array
        Points in the photo as a viewer shows it, pixel centres at integers; outside the photo on bars.

    Raises
    ------
    FeatxError
        If the level's offset or stride is unknown.
    """
    offset, stride = spacing_of(level)
    x, y = offset[1] + _float(column) * stride[1], offset[0] + _float(row) * stride[0]
    return (x - frame.offset[0]) / frame.scale[0], (y - frame.offset[1]) / frame.scale[1]


def to_cell(frame: Frame, level: Level, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    """Find the cells at points of the photo, the inverse of `to_pixel`.

    Parameters
    ----------
    x, y : array_like
        Points in the photo, pixel centres at integers; any shapes that numpy broadcasts.

    Returns
    -------
    row, column : array
        Fractions; a point at the centre of cell `i` gives `i`. They may lie outside the map.

    Raises
    ------
    FeatxError
        If the level's offset or stride is unknown.
    """
    offset, stride = spacing_of(level)
    across, down = _float(x) * frame.scale[0] + frame.offset[0], _float(y) * frame.scale[1] + frame.offset[1]
    return (down - offset[0]) / stride[0], (across - offset[1]) / stride[1]


def box_of(frame: Frame, level: Level, row: ArrayLike, column: ArrayLike) -> tuple[Array, Array, Array, Array]:
    """Find the boxes in the photo that cells cover: one stride wide and high, around the cell's centre.

    Returns
    -------
    x1, y1, x2, y2 : array
        Edges in the photo, 0 … w; not clipped to the photo. Neighbouring cells share an edge.

    Raises
    ------
    FeatxError
        If the level's offset or stride is unknown.
    """
    row, column = np.broadcast_arrays(_float(row), _float(column))
    x1, y1 = to_pixel(frame, level, row - 0.5, column - 0.5)
    x2, y2 = to_pixel(frame, level, row + 0.5, column + 0.5)
    return x1 + 0.5, y1 + 0.5, x2 + 0.5, y2 + 0.5


def valid(frame: Frame, level: Level, height: int, width: int) -> tuple[slice, slice]:
    """Find the rows and columns of a map whose cells are centred on the photo, and not on bars.

    Parameters
    ----------
    height, width : int
        Cells of the map.

    Returns
    -------
    rows, columns : slice
        As in ``values[:, rows, columns]``; both empty where no cell is centred on the photo.

    Raises
    ------
    FeatxError
        If the level's offset or stride is unknown.
    """
    x, y = to_pixel(frame, level, np.arange(height), np.arange(width))
    rows, columns = _span(y, frame.original[1]), _span(x, frame.original[0])
    return (rows, columns) if rows.stop and columns.stop else (slice(0, 0), slice(0, 0))


def seen(frame: Frame) -> tuple[float, float, float, float]:
    """Return the part of the photo that lies in the model's input, as edges x1, y1, x2, y2 in 0 … w."""
    x1, y1 = frame.to_original(-0.5, -0.5)
    x2, y2 = frame.to_original(frame.input[0] - 0.5, frame.input[1] - 0.5)
    width, height = frame.original
    return max(x1 + 0.5, 0.0), max(y1 + 0.5, 0.0), min(x2 + 0.5, float(width)), min(y2 + 0.5, float(height))


def cut(frame: Frame, boxes: ArrayLike) -> Array:
    """Clip boxes to what the model saw of the photo.

    Parameters
    ----------
    boxes : array_like
        (B, 4): edges x1, y1, x2, y2 in the photo, 0 … w.

    Returns
    -------
    array
        (B, 4) float64. A row is NaN where a box is not finite, has no area, or lies outside what the model saw.
    """
    x1, y1, x2, y2 = seen(frame)
    given = _float(boxes).reshape(-1, 4)
    inside = np.clip(given, (x1, y1, x1, y1), (x2, y2, x2, y2))
    area = (inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1]) & np.isfinite(given).all(axis=1)
    inside[~area] = np.nan
    return inside


def share_seen(frame: Frame, boxes: ArrayLike) -> Array:
    """Return the share of the area of each box, (B, 4) edges in the photo, that the model saw: (B,) float64."""
    given = _float(boxes).reshape(-1, 4)
    # Side by side: the area of a box may be too large or too small for a float64. A side may still be too large.
    with np.errstate(over="ignore"):
        shares: Array = np.nan_to_num(_sides(cut(frame, given)) / _sides(given)).prod(axis=1)
    return shares


def boxes_in_cells(frame: Frame, level: Level, boxes: ArrayLike) -> Array:
    """Convert boxes of the photo to cells, as ``torchvision.ops.roi_align(spatial_scale=1, aligned=True)`` takes them.

    Parameters
    ----------
    boxes : array_like
        (B, 4): edges x1, y1, x2, y2 in the photo, 0 … w.

    Returns
    -------
    array
        (B, 4) float64: edges in cells, where cell `i` spans i … i + 1.

    Raises
    ------
    FeatxError
        If the level's offset or stride is unknown.
    """
    points = _float(boxes).reshape(-1, 4).T - 0.5
    (top, left), (bottom, right) = (to_cell(frame, level, *points[at : at + 2]) for at in (0, 2))
    return np.stack([left, top, right, bottom], axis=1) + 0.5


def _sides(boxes: Array) -> Array:
    """Return width and height of boxes: (B, 2)."""
    return boxes[:, 2:] - boxes[:, :2]


def _span(centres: Array, length: int) -> slice:
    """Return the centres that lie on a side of a photo."""
    places = np.flatnonzero((centres >= -0.5 - SAME) & (centres <= length - 0.5 + SAME))
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, 0)


def _down_across(value: Spacing) -> Pair:
    return value if isinstance(value, tuple) else (value, value)


def _float(value: ArrayLike) -> Array:
    return np.asarray(value, np.float64)
