# Patches: the places in a run's photos whose features are most similar to those of a place in a photo; exact.
"""``featx similar --at`` and ``--box`` as a function."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import inf
from os import PathLike
from pathlib import Path

import numpy as np

from featx.command_options import SimilarOptions
from featx.engine import resources
from featx.engine.events import Checked
from featx.errors import UsageError
from featx.explore import tiles
from featx.explore.cosines import Direction
from featx.explore.queries import arrays_of, key_of
from featx.explore.shown import outside
from featx.explore.tiles import Tile
from featx.images import cells, locators
from featx.images.frame import Frame
from featx.paths import path_text, to_path
from featx.runs import places
from featx.runs.formats import Array
from featx.runs.places import Named
from featx.runs.reading import Run, damaged, open_run
from featx.values import Level

# The largest stride of the level that is compared by default: that of a ViT with patches of 16 pixels.
STRIDE = 16

# How many photos a thread searches at a time, and how many cells are compared exactly at a time.
PHOTOS, CELLS = 32, 1024


@dataclass(frozen=True, slots=True)
class Patch:
    """A cell of a level of a photo.

    Attributes
    ----------
    key, path : str
        The photo's key, and its file when it was extracted.
    size : tuple of int
        Width and height of the photo as a viewer shows it.
    x, y : float
        The pixel of the photo at which the cell is centred; pixel centres at integers.
    level : str
        The name of the level's array.
    score : float
        The cosine of the angle between the cell's features and the query's, -1 to 1.
    box : tuple of float
        x1, y1, x2, y2: the edges of the cell in the photo, one stride apart; not clipped to the photo.
    """

    key: str
    path: str
    size: tuple[int, int]
    x: float
    y: float
    level: str
    score: float
    box: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Patches:
    """The result of a search: best first, ties in the order of the run, then of rows and columns.

    Attributes
    ----------
    query, path : str
        The query's photo as it was named, and its file.
    size : tuple of int
        Its width and height.
    at : tuple of float or None
        The point in it, if one was asked for.
    box : tuple of float
        The box in it that was asked for, or one around the point, one stride wide and high.
    level : str
        The name of the level's array.
    images : int
        Photos of the run.
    found : list of Patch
        The most similar places.
    weights : str
        What kind of weights made the features, ``random`` for example.
    """

    query: str
    path: str
    size: tuple[int, int]
    at: tuple[float, ...] | None
    box: tuple[float, ...]
    level: str
    images: int
    found: list[Patch]
    weights: str


def similar_patches(
    run: str | PathLike[str] | Run,
    query: str | PathLike[str],
    *,
    at: str | Sequence[float] | None = None,
    box: str | Sequence[float] | None = None,
    level: Named | None = None,
    count: int = 10,
    per_photo: int = 1,
    with_self: bool = False,
    device: str = "auto",
    listener: Callable[[Checked], None] = lambda _: None,
) -> Patches:
    """Find the places in a run's photos whose features are most similar to those of a place in a photo.

    Every cell that is centred on a photo is compared, exactly. Memory grows with the number of photos, not with their
    maps.

    Parameters
    ----------
    run : path or Run
        A run with maps.
    query : path or str
        A photo. If the run has it, by its file or its key, the run's own features are used; otherwise they are computed
        as the run's were.
    at : (x, y)
        A pixel of the photo as a viewer shows it, pixel centres at integers; see `featx.runs.reading.Run.sample`.
    box : (x1, y1, x2, y2)
        Or a box, whose features are averaged: edges in pixels; see `featx.runs.reading.Run.regions`.
    level : int, str or Level, or None
        The level that is compared; None takes the last with a stride of at most 16 pixels of the model's input, or
        else the one with the smallest stride.
    count : int
        Number of places to find.
    per_photo : int
        The most places in a photo. The eight cells around a place that was found are skipped.
    with_self : bool
        Whether places in the query's photo may be among the results.
    device : str
        Where the query's features are computed.
    listener : callable
        Called with the progress.

    Returns
    -------
    Patches
        The most similar places, best first.

    Raises
    ------
    FeatxError
        If the run lacks that map, its maps are damaged, the query cannot be read, or the model did not see that place.
    """
    if at is None and box is None:
        raise UsageError("similar_patches needs a place", "Give at=(x, y) or box=(x1, y1, x2, y2)")
    named = level.key if isinstance(level, Level) else level
    asked = SimilarOptions(count=count, at=at, box=box, level=named, per_photo=per_photo)  # type: ignore[arg-type]
    opened = run if isinstance(run, Run) else open_run(run)
    chosen = choose_level(opened.maps) if asked.level is None else places.chosen(opened.maps, asked.level)[0]
    cells.spacing_of(chosen)
    name = os.fspath(query)
    key = key_of(opened, name)
    path, frame, placed, vector = _feature(opened, name, key, chosen, asked, device)
    place = f"--at {_numbers(asked.at)}" if asked.at else f"--box {_numbers(asked.box or ())}"
    if np.isnan(vector).all():
        raise outside(place, name, frame, edges=asked.at is None)
    direction = Direction.of(vector, f"The feature of {place} on {chosen.key}", "Try another place or --level")
    found = _Search(opened, chosen, direction, asked, None if with_self else key).run(listener)
    around = asked.box or _floats(cells.box_of(frame, placed, *cells.to_cell(frame, placed, *asked.at or ())))
    kind = opened.summary["weights"]["kind"]
    return Patches(name, path, frame.original, asked.at, around, chosen.key, len(opened), found, kind)


def draw(patches: Patches, path: Path) -> None:
    """Draw the query's photo and those of the patches, with the places marked.

    Raises
    ------
    OutputError
        If it cannot be written; see `featx.explore.drawing.require_drawable`.
    """
    where = f"at {_numbers(patches.at)}" if patches.at else f"in {_numbers(patches.box)}"
    query = Tile(to_path(patches.path), Path(patches.query).name, f"query {where}", framed=True, mark=_shares(patches))
    found = [
        Tile(to_path(each.path), each.key, f"{each.score:.4f} at {each.x:.1f},{each.y:.1f}", mark=_shares(each))
        for each in patches.found
    ]
    tiles.draw([query, *found], path)


def _shares(place: Patch | Patches) -> tuple[float, ...]:
    """Return the edges of a place's box as shares of the photo's width and height."""
    return tuple(edge / side for edge, side in zip(place.box, place.size * 2, strict=True))


def choose_level(maps: Sequence[Level]) -> Level:
    """Choose the level whose patches are compared: the last of stride 16 or less, or else of the smallest stride.

    Raises
    ------
    UsageError
        If there are no maps.
    FeatxError
        If none has a known offset and stride.
    """
    every = places.chosen(maps, None)
    known = [level for level in every if level.stride is not None and level.offset is not None]
    strides = {level.key: max(cells.spacing_of(level)[1]) for level in known or every}
    finest = max(STRIDE, min(strides.values()))
    return [level for level in known if strides[level.key] <= finest][-1]


def _feature(
    run: Run, name: str, key: str | None, level: Level, asked: SimilarOptions, device: str
) -> tuple[str, Frame, Level, Array]:
    """Return the query's file, frame, and level as it lies there, and the place's feature: NaN if it was not seen."""
    if key is None:
        path = path_text(name)
        arrays, frame, placed = arrays_of(run, name, device)
        level = placed[level.key]
    else:
        line = run.line(key)
        path, frame, level = line.path, line.frame, run.placed(line, level)
        arrays = {level.key: _map(run, key, level)}
        if not np.isfinite(arrays[level.key]).all():
            raise damaged(key, f"{level.key} holds NaN or infinity")
    if asked.at is not None:
        return path, frame, level, places.sample(arrays, frame, [level], [asked.at])[level.key][0]
    found = places.regions(arrays, frame, [level], np.array([asked.box]), (1, 1))
    return path, frame, level, found[level.key][0, :, 0, 0]


def _map(run: Run, key: str, level: Level) -> Array:
    values = run.read_maps(key, [level])[level.key]
    if values.ndim != 3 or len(values) != level.channels:
        raise damaged(key, f"{level.key} has the shape {values.shape}, not ({level.channels}, height, width)")
    return values


def _numbers(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _floats(values: Sequence[Array]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


class _Search:
    """A search through all photos of a run, in several threads."""

    def __init__(
        self, run: Run, level: Level, direction: Direction, asked: SimilarOptions, left_out: str | None
    ) -> None:
        self._run, self._level, self._direction = run, level, direction
        self._count, self._per_photo = asked.count, min(asked.per_photo or 1, asked.count)
        self._left_out, self._file = left_out, to_path(run.line(left_out).path) if left_out is not None else ""
        self._floor = -inf  # the score of the last of the best places so far, once there are enough

    def run(self, listener: Callable[[Checked], None]) -> list[Patch]:
        """Search photo by photo, and return the best places."""
        keys, done, best = list(self._run), 0, list[Patch]()
        blocks = [keys[start : start + PHOTOS] for start in range(0, len(keys), PHOTOS)]
        pool = ThreadPoolExecutor(resources.cores())
        try:
            for block, found in zip(blocks, pool.map(self._search, blocks), strict=True):
                # In the order of the run, whichever is ready first: sorting keeps it among ties.
                best = sorted([*best, *found], key=lambda patch: -patch.score)[: self._count]
                if len(best) == self._count:
                    self._floor = best[-1].score
                done += len(block)
                listener(Checked(done, len(keys)))
        finally:
            pool.shutdown(cancel_futures=True)
        return best

    def _search(self, keys: Sequence[str]) -> list[Patch]:
        return [patch for key in keys for patch in self._of_photo(key)]

    def _of_photo(self, key: str) -> Iterator[Patch]:
        values = _map(self._run, key, self._level)
        near = self._direction.near_cells(values)
        if np.isnan(near).any():
            raise damaged(key, f"{self._level.key} holds NaN or infinity")
        if near.max() < self._floor - self._direction.error:
            return
        line = self._run.line(key)
        if key == self._left_out or (self._file and locators.same_image(self._file, to_path(line.path))):
            return
        level = self._run.placed(line, self._level)
        on_photo = cells.valid(line.frame, level, *near.shape)
        for row, column, score in self._best_cells(values, near, on_photo):
            x, y = _floats(cells.to_pixel(line.frame, level, row, column))
            box = _floats(cells.box_of(line.frame, level, row, column))
            yield Patch(key, line.path, line.frame.original, x, y, self._level.key, score, box)

    def _best_cells(
        self, values: Array, near: Array, on_photo: tuple[slice, slice]
    ) -> Iterator[tuple[int, int, float]]:
        """Find the best cells of a map, exactly: the best one first, then the best of those not next to it, and so on.

        In single precision, each score may be off by the error, so the truly best cell may lie up to twice the error
        below the one that seems best.
        """
        scores = np.full(near.shape, -inf)
        scores[on_photo] = near[on_photo]
        is_exact = np.zeros(near.shape, bool)
        error = self._direction.error
        for _ in range(self._per_photo):
            lowest = max(scores.max() - 2 * error, self._floor - error)
            rows, columns = np.nonzero((scores >= lowest) & (scores > -inf) & ~is_exact)
            for start in range(0, len(rows), CELLS):
                block = rows[start : start + CELLS], columns[start : start + CELLS]
                scores[block] = self._direction.exactly(values[:, *block].T)
            is_exact[rows, columns] = True
            exact = np.where(is_exact, scores, -inf)
            row, column = (int(place) for place in np.unravel_index(exact.argmax(), exact.shape))
            if exact[row, column] < self._floor or exact[row, column] == -inf:
                return
            yield row, column, float(exact[row, column])
            around = slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2)
            scores[around] = -inf
