# Bands: rows of a large picture's maps, put together of those of tiles and made smaller as soon as they are complete.
"""Maps that memory may not hold, from the top, a few rows at a time.

The numbers are those that `featx.engine.reductions` make of whole maps: sums are made in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from msgspec.structs import replace

from featx.engine.beside import Beside, Rows, hand_on
from featx.engine.fitting import Cells, Covariance
from featx.engine.pooling import Grid, GridRows, across
from featx.engine.projecting import Components
from featx.engine.reducing import Photo, Reduction
from featx.engine.scaling import Scaled, quotients, scale_of
from featx.engine.tiling import BESIDE, IN_MEMORY
from featx.images.cells import Array
from featx.images.grid import on_photo, pooled
from featx.images.tiles import Share, Size
from featx.runs.formats.large import InMemory, OnDisk
from featx.values import Field, Level

# Steps that take maps as a whole, in float32.
OF_WHOLE_MAPS = (Grid, Components, Scaled, Cells)


class Chain(NamedTuple):
    """What is made of a map.

    Attributes
    ----------
    first : callable
        Makes a step that can be applied to some of the map's columns by themselves, before `rest` gets all of them.
    rest : Rows
        Gets what the first step made.
    folder : Path or None
        Where columns that memory does not hold wait for the others.
    most : int
        Bytes of these that memory holds.
    """

    first: Callable[[Rows], Rows]
    rest: Rows
    folder: Path | None = None
    most: int = 0


class Mosaic:
    """A map that is put together of those of tiles, one row of them after the other.

    Where tiles do not overlap, the first step is done to what each gives, which takes less memory afterwards.

    Parameters
    ----------
    chain : Chain
        Gets the rows of the (C, H, W) map.
    rows, columns : list of Share
        What the tiles of each row, and of each column, give.
    dtype : dtype
        Of the maps of tiles.
    """

    def __init__(self, chain: Chain, rows: Sequence[Share], columns: Sequence[Share], dtype: np.dtype[Any]) -> None:
        self._rest, self._rows, self._columns = chain.rest, rows, columns
        self._blended: Rows | None = None
        self._beside = Beside(chain.folder, chain.most // len(columns))
        self._parts = [self._beside.part() for _ in columns]
        self._firsts = [chain.first(part) for part in self._parts]
        if any(share.weights is not None for share in (*rows, *columns)):
            self._blended, dtype = chain.first(chain.rest), np.dtype(np.float32)
        self._band: Array = np.empty((0, 0, 0), dtype)

    @property
    def size(self) -> Size:
        """Rows and columns of the map."""
        return self._rows[-1].stop, self._columns[-1].stop

    def add(self, row: int, column: int, values: Array) -> None:
        """Add what a tile gives: (C, h, w), of its window."""
        down, across = self._rows[row], self._columns[column]
        height, width = down.stop - down.start, across.stop - across.start
        part = values[:, down.skipped : down.skipped + height, across.skipped : across.skipped + width]
        if self._blended is None:
            self._firsts[column].put(down.start, part)
            return
        if not column:
            self._begin(down, len(values))
        for share, axes in ((down, (slice(None), None)), (across, (None, slice(None)))):
            if share.weights is not None:
                part = part * share.weights[axes]
        self._band[:, :, across.start : across.stop] += part

    def _begin(self, down: Share, channels: int) -> None:
        """Begin a row of tiles, whose first cells those of the row above may have given a part of already."""
        band = np.zeros((channels, down.stop - down.start, self._columns[-1].stop), self._band.dtype)
        band[:, : self._band.shape[1]] = self._band if self._band.size else 0
        self._band = band

    def finish(self, row: int) -> None:
        """Hand on the cells to which nothing is added by the rows below."""
        if self._blended is None:
            for each in zip(*(part.taken() for part in self._parts), strict=True):
                hand_on(each[0][0], [values for _, values in each], self._rest)
            self._beside.clear()
            return
        start = self._rows[row].start
        settled = self._rows[row + 1].start - start if row + 1 < len(self._rows) else self._band.shape[1]
        if settled:  # none where the next row sees all of this one
            hand_on(start, [self._band[:, :settled]], self._blended)
        self._band = self._band[:, settled:].copy()

    def made(self) -> list[tuple[Any, bool]]:
        """Return the arrays that are made of the map, and of each whether all of it is finite."""
        return self._rest.finish()


class Kept:
    """Keep the map, in the type in which it is stored."""

    def __init__(self, target: OnDisk | InMemory, dtype: np.dtype[Any]) -> None:
        self._target, self._dtype = target, dtype
        self._finite = True

    def put(self, row: int, values: Array) -> None:
        """Keep rows."""
        if values.dtype != self._dtype:
            with np.errstate(over="ignore"):
                values = values.astype(self._dtype)
            self._finite &= bool(np.isfinite(values).all())  # which a type of fewer bits may end
        self._target.put(row, values)

    def finish(self) -> list[tuple[Any, bool]]:
        """Return the map."""
        return [(self._target.result, self._finite)]


class Scaling:
    """Store the map as whole numbers, once its scales are known."""

    def __init__(self, target: OnDisk | InMemory) -> None:
        self._target = target
        self._largest: Array = np.zeros(target.shape[0], np.float32)

    def put(self, row: int, values: Array) -> None:
        """Keep rows, and note the largest values."""
        np.maximum(self._largest, np.abs(values).max(axis=(1, 2)), out=self._largest)
        self._target.put(row, values)

    def finish(self) -> list[tuple[Any, bool]]:
        """Return the map and its scales."""
        scale = scale_of(torch.from_numpy(self._largest))

        def whole(channel: int, values: Array) -> Array:
            found: Array = quotients(torch.from_numpy(values), scale[channel]).numpy()
            return found

        self._target.narrow(np.dtype(np.int8), whole)
        return [(self._target.result, True), (scale.numpy(), bool(torch.isfinite(scale).all()))]


class Projecting:
    """Project a map on components."""

    def __init__(self, step: Components, key: str, rest: Rows) -> None:
        self._step, self._key, self._rest = step, key, rest

    def put(self, row: int, values: Array) -> None:
        """Project rows."""
        maps = torch.from_numpy(np.ascontiguousarray(values))[None]
        self._rest.put(row, self._step.projected(maps, self._key)[0].numpy())

    def finish(self) -> list[tuple[Any, bool]]:
        """Return what was made of the projected map."""
        return self._rest.finish()


class Down:
    """Pool the rows of a map to those of a grid."""

    def __init__(self, rows: GridRows, rest: Rows) -> None:
        self._rows, self._rest = rows, rest

    def put(self, row: int, values: Array) -> None:
        """Add rows to those of the grid, and hand on those that are complete."""
        for number, each in enumerate(torch.from_numpy(values).unbind(1), row):
            for part, made in self._rows.add(number, each):
                self._rest.put(part, made.numpy())

    def finish(self) -> list[tuple[Any, bool]]:
        """Return what was made of the pooled map."""
        return self._rest.finish()


class Across:
    """Pool the columns of what `Down` made to those of a grid."""

    def __init__(self, grid: Grid, on: slice, rest: Rows) -> None:
        self._grid, self._on, self._rest = grid, on, rest

    def put(self, row: int, values: Array) -> None:
        """Pool rows."""
        self._rest.put(row, across(self._grid, torch.from_numpy(values), self._on).numpy())

    def finish(self) -> list[tuple[Any, bool]]:
        """Return what was made of the pooled map."""
        return self._rest.finish()


class Gathering:
    """Sum up the features of the cells on the photo, as a covariance."""

    def __init__(self, channels: int, on: tuple[slice, slice]) -> None:
        self._found, self._on = Covariance(channels), on

    def put(self, row: int, values: Array) -> None:
        """Add the cells of rows."""
        rows, columns = self._on
        seen = values[:, max(0, rows.start - row) : max(0, rows.stop - row), columns]
        if seen.size:
            self._found.add(seen.reshape(len(seen), -1).T)

    def finish(self) -> list[tuple[Any, bool]]:
        """Return the covariance."""
        return [(self._found, True)]


def taken_whole(steps: Sequence[Reduction]) -> bool:
    """Whether steps take maps as a whole."""
    return any(isinstance(step, OF_WHOLE_MAPS) for step in steps)


def fields_of(steps: Sequence[Reduction], maps: Sequence[Field]) -> list[Field]:
    """Return what steps make of maps."""
    fields = [replace(field, dtype="") for field in maps]
    for step in steps:
        fields = step.fields(fields)
    return fields


def in_memory(maps: Sequence[Field]) -> dict[int, Chain]:
    """Make what keeps the rows of small maps as they are."""
    types = [np.dtype(field.dtype) for field in maps]
    targets = [Kept(InMemory(field.lengths, dtype), dtype) for field, dtype in zip(maps, types, strict=True)]
    return {place: Chain(_as_it_is, target) for place, target in enumerate(targets)}


def chains_of(steps: Sequence[Reduction], maps: Sequence[Field], photo: Photo, folder: Path) -> dict[int, Chain]:
    """Make what takes the rows of a picture's maps.

    Parameters
    ----------
    steps : sequence of Reduction
        What makes them smaller.
    maps : sequence of Field
        As tiles give them, in the picture's size.
    photo : Photo
        The picture.
    folder : Path
        Gets maps that memory does not hold.

    Returns
    -------
    dict of int to Chain
        By the places of the maps; those of which nothing is made are missing.
    """
    for step in steps:
        if isinstance(step, Cells):
            gathering = {place: _gathering(step, level, maps[place], photo) for place, level in step.levels.items()}
            return {place: _spilling(chain, folder, len(gathering)) for place, chain in gathering.items()}
    by_key = {field.key: field for field in fields_of(steps, maps)}
    types = {key: np.dtype("float32" if field.dtype == "int8" else field.dtype) for key, field in by_key.items()}
    held = sum(math.prod(field.lengths) * types[key].itemsize for key, field in by_key.items())
    found = {}
    for place, field in enumerate(maps):
        shape, dtype = by_key[field.key].lengths, types[field.key]
        target = OnDisk(folder, shape, dtype) if held > IN_MEMORY else InMemory(shape, dtype)
        found[place] = _spilling(_chain(steps, place, field, photo, target), folder, len(maps))
    return found


def _spilling(chain: Chain, folder: Path, maps: int) -> Chain:
    """Have columns wait on the disk where memory, which so many maps share, does not hold them."""
    return chain._replace(folder=folder, most=BESIDE // maps)


def _chain(steps: Sequence[Reduction], place: int, field: Field, photo: Photo, target: OnDisk | InMemory) -> Chain:
    """Make what takes the rows of a map: the last step is made first."""
    chain = Chain(_as_it_is, Kept(target, target.dtype))
    for step in reversed(steps):
        if isinstance(step, Scaled) and place in step.places:
            chain = Chain(_as_it_is, Scaling(target))
        elif isinstance(step, Components) and place in step.keys:
            chain = Chain(partial(Projecting, step, step.keys[place]), chain.rest)
        elif isinstance(step, Grid) and place in step.levels:
            chain = _pooling(step, step.levels[place], field, photo, chain.first(chain.rest))
    return chain


def _gathering(step: Cells, level: Level, field: Field, photo: Photo) -> Chain:
    size, grid = (field.lengths[1], field.lengths[2]), step.grid
    if grid is None:
        return Chain(_as_it_is, Gathering(level.channels, on_photo(photo.frame, level, size)))
    rows = Gathering(level.channels, on_photo(photo.frame, pooled(level, size, grid.size), grid.cells(size)))
    return _pooling(grid, level, field, photo, rows)


def _pooling(grid: Grid, level: Level, field: Field, photo: Photo, rest: Rows) -> Chain:
    size = field.lengths[1], field.lengths[2]
    rows, columns = on_photo(photo.frame, level, size)
    return Chain(lambda after: Down(GridRows(grid, size[0], rows), after), Across(grid, columns, rest))


def _as_it_is(rows: Rows) -> Rows:
    return rows
