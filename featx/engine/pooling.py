# The grid: maps pooled to a fixed number of cells of equal size.
"""``--grid``, on the device that computed the maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d

from featx.dtypes import ATTENTION
from featx.engine.reducing import Photo, Reduction, Values
from featx.images.cells import Array
from featx.images.grid import Size, cells_of, on_photo, pooled, shares
from featx.values import Field, Level


@dataclass(frozen=True, slots=True)
class Grid(Reduction):
    """Pool maps, and the attention beside them, to at most so many cells.

    Each number depends on its own image alone, bit for bit: sums are made one cell after the other.

    Attributes
    ----------
    size : (int, int)
        The most rows and columns.
    pool : str
        ``avg``: the mean of the cells that lie on the photo, each by the share of it that is covered; of all cells
        where none does. ``max``: the maximum over the same cells.
    levels : mapping of int to Level
        The level of each map, as the network has it, by its place among the fields; of attention, that which it is of.
    """

    size: Size
    pool: str
    levels: Mapping[int, Level]

    def fields(self, fields: Sequence[Field]) -> list[Field]:
        """Return the fields with the grid's rows and columns; None where each photo has its own."""
        return [self._field(field) if place in self.levels else field for place, field in enumerate(fields)]

    def _field(self, field: Field) -> Field:
        sides = zip(field.shape[1:], self.size, strict=True)
        return replace(field, shape=(field.shape[0], *(length and cells_of(length, most) for length, most in sides)))

    def level(self, level: Level) -> Level:
        """Return a level as it is on the grid."""
        if level.height is None or level.width is None:
            return level
        return pooled(level, (level.height, level.width), self.size)

    def __call__(self, values: Sequence[Values], photos: Sequence[Photo]) -> list[Values]:
        """Pool the maps of a batch."""
        named = zip(values, map(self.levels.get, range(len(values))), strict=True)
        return [
            self.pooled(value, level, photos) if level and isinstance(value, Tensor) else value
            for value, level in named
        ]

    def pooled(self, values: Tensor, level: Level, photos: Sequence[Photo]) -> Tensor:
        """Pool (B, C, H, W) maps of a level: (B, C, rows, columns)."""
        height, width = values.shape[-2:]
        if (height, width) == self.cells((height, width)):
            return values
        on = [on_photo(photo.frame, level, (height, width)) for photo in photos]
        on += [(slice(0, height), slice(0, width))] * (len(values) - len(on))
        if self.pool == "max":
            return _largest(values.float(), on, self.cells((height, width)))
        made = values.float()
        for way, most in enumerate(self.size):
            made = _mean(made, [each[way] for each in on], most, 2 + way)
        return made

    def cells(self, size: Size) -> Size:
        """Return the grid's rows and columns for a map of this height and width."""
        return cells_of(size[0], self.size[0]), cells_of(size[1], self.size[1])


class GridRows:
    """The rows of a grid, made as those of one map come from the top; its numbers are those of `Grid`, bit for bit.

    Parameters
    ----------
    grid : Grid
        What the map is pooled to.
    length : int
        Rows of the map.
    on : slice
        Those that are on the photo.
    """

    def __init__(self, grid: Grid, length: int, on: slice) -> None:
        self._largest, self._on = grid.pool == "max", on
        self._places, covered = shares(length, grid.size[0])
        self._weights = _weights(self._places, covered, [on])[0]
        self._last = np.where(covered > 0, self._places, 0).max(axis=1)
        self._open: dict[int, Tensor] = {}
        self._next = 0

    def add(self, number: int, row: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Add a row of the map, (C, W), or a part of it.

        Yields the number and the (C, 1, W) of each row of the grid that is complete; (2 C, 1, W) of maxima: over all
        rows, and over those on the photo.
        """
        for part in range(self._next, len(self._last)):
            if self._places[part, 0] > number:
                break
            self._open[part] = self._added(part, number, row)
            if self._last[part] == number:
                self._next = part + 1
                yield part, self._open.pop(part)[:, None]

    def _added(self, part: int, number: int, row: Tensor) -> Tensor:
        before = self._open.get(part)
        if self._largest:
            seen = row if self._on.start <= number < self._on.stop else torch.full_like(row, -torch.inf)
            both = torch.cat([row, seen])
            return both if before is None else torch.maximum(before, both)
        weighted = row * float(self._weights[part, number - self._places[part, 0]])
        return weighted if before is None else before.add_(weighted)


def across(grid: Grid, made: Tensor, on: slice) -> Tensor:
    """Pool rows that `GridRows` has made along their columns, of which those in `on` are on the photo: (C, rows, n)."""
    length = made.shape[2]
    if grid.pool == "avg":
        return _mean(made[None], [on], grid.size[1], 3)[0]
    whole, seen = made.chunk(2)
    beside = torch.ones(length, dtype=torch.bool)
    beside[on] = False
    cells = made.shape[1], cells_of(length, grid.size[1])
    whole, seen = (adaptive_max_pool2d(each, cells) for each in (whole, seen.masked_fill(beside, -torch.inf)))
    return torch.where(seen.isneginf(), whole, seen)


def _mean(values: Tensor, on: Sequence[slice], most: int, way: int) -> Tensor:
    """Average the rows (2) or columns (3) of each map over equal parts."""
    length = values.shape[way]
    if length <= most:
        return values
    places, covered = shares(length, most)
    weights = torch.from_numpy(_weights(places, covered, on)).to(values.device)
    index = torch.from_numpy(places).to(values.device)
    shape = (len(values), 1, -1, 1) if way == 2 else (len(values), 1, 1, -1)
    total = values.index_select(way, index[:, 0]) * weights[:, :, 0].view(shape)
    for turn in range(1, index.shape[1]):
        # Two steps, not one fused: where vectors of numbers end depends on the place in the batch.
        total += values.index_select(way, index[:, turn]) * weights[:, :, turn].view(shape)
    return total


def _weights(places: Array, covered: Array, on: Sequence[slice]) -> Array:
    """Return the weight of each cell that a part touches, for each image: (B, n, k) float32, of sum 1 over k."""
    spans = np.array([(each.start, each.stop) for each in on])[:, :, None, None]
    weights = covered * ((places >= spans[:, 0]) & (places < spans[:, 1]))
    weights = np.where(weights.any(axis=2, keepdims=True), weights, covered)
    found: Array = (weights / weights.sum(axis=2, keepdims=True)).astype(np.float32)
    return found


def _largest(values: Tensor, on: Sequence[tuple[slice, slice]], cells: Size) -> Tensor:
    """Take the maxima of each map over equal parts, which include all the cells that they touch."""
    whole = adaptive_max_pool2d(values, cells)
    if all((rows.stop - rows.start, columns.stop - columns.start) == values.shape[2:] for rows, columns in on):
        return whole
    beside = torch.ones(len(values), 1, *values.shape[2:], dtype=torch.bool, device=values.device)
    for place, (rows, columns) in enumerate(on):
        beside[place, :, rows, columns] = False
    seen = adaptive_max_pool2d(values.masked_fill(beside, -torch.inf), cells)
    return torch.where(seen.isneginf(), whole, seen)


def levels_of(fields: Sequence[Field], levels: Mapping[str, Level]) -> dict[int, Level]:
    """Return the level of each map, and of each map's attention, by its place among fields."""
    return {
        place: levels[key]
        for place, field in enumerate(fields)
        if (key := field.key.removesuffix(ATTENTION)) in levels and len(field.shape) == 3
    }
