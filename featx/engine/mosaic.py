# Mosaics: pictures that go through the network tile by tile, and maps put together of what comes out.
"""Running one large picture, in bounded memory."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featx.engine import resources
from featx.engine.batching import Large
from featx.engine.children import LOOK_EVERY
from featx.engine.computing import Arrays, Computer
from featx.engine.isolation import Reader
from featx.engine.reducing import Photo
from featx.engine.stages import Stage
from featx.engine.tiling import IN_MEMORY
from featx.errors import StuckError, UnreadableError
from featx.images import locators, windows
from featx.images.fitting import Native
from featx.images.placing import unreadable
from featx.images.tiles import Share, Size, Tiling
from featx.images.windows import Pixels, Windows
from featx.options import Limits
from featx.runs.formats import Array
from featx.runs.formats.large import InMemory, OnDisk
from featx.runs.tensors import array_of
from featx.text import amount_of
from featx.values import Item

# A picture that is decoded as a whole and takes this many bytes gets a note.
MUCH = 1 << 29

# Gives the pixels of a part of the input: its rows, and its columns.
Section = Callable[[slice, slice], Pixels]


class Mosaic:
    """A map that is put together of those of tiles, one row of them after the other.

    Parameters
    ----------
    target : OnDisk or InMemory
        Gets the (C, H, W) map.
    rows, columns : list of Share
        What the tiles of each row, and of each column, give.
    dtype : dtype
        Of the map.
    """

    def __init__(
        self, target: OnDisk | InMemory, rows: Sequence[Share], columns: Sequence[Share], dtype: np.dtype[Any]
    ) -> None:
        self.target, self._rows, self._columns, self._dtype = target, rows, columns, dtype
        blends = any(share.weights is not None for share in (*rows, *columns))
        self._band: Array = np.empty((0, 0, 0), np.float32 if blends else dtype)
        self._blends = blends

    def add(self, row: int, column: int, values: Array) -> None:
        """Add what a tile gives: (C, h, w), of its window."""
        down, across = self._rows[row], self._columns[column]
        if not column:
            self._begin(down, len(values))
        height, width = down.stop - down.start, across.stop - across.start
        part = values[:, down.skipped : down.skipped + height, across.skipped : across.skipped + width]
        place = self._band[:, :, across.start : across.stop]
        if not self._blends:
            place[:] = part
            return
        for share, axes in ((down, (slice(None), None)), (across, (None, slice(None)))):
            if share.weights is not None:
                part = part * share.weights[axes]
        place += part

    def _begin(self, down: Share, channels: int) -> None:
        """Begin a row of tiles, whose first cells those of the row above may have given a part of already."""
        band = np.zeros((channels, down.stop - down.start, self._columns[-1].stop), self._band.dtype)
        band[:, : self._band.shape[1]] = self._band if self._band.size else 0
        self._band = band

    def finish(self, row: int) -> None:
        """Write the cells to which nothing is added by the rows below."""
        start = self._rows[row].start
        settled = self._rows[row + 1].start - start if row + 1 < len(self._rows) else self._band.shape[1]
        self.target.put(start, self._band[:, :settled].astype(self._dtype, copy=False))
        self._band = self._band[:, settled:].copy()


@dataclass(frozen=True, slots=True)
class Equipment:
    """What tiles are run with.

    Attributes
    ----------
    computers : sequence of Computer
        One per device; passes are assigned round-robin.
    batch_size, forwards : int
        Tiles in a pass, and concurrent passes.
    reader : Reader
        Marks what is being read.
    limits : Limits
        Of one image.
    folder : Path
        Where maps are that memory does not hold.
    largest : int
        Bytes that the arrays of one image may have.
    stopped : callable
        Whether the run is being stopped.
    force : bool
        Whether to try what memory seems too small for.
    """

    computers: Sequence[Computer]
    batch_size: int
    forwards: int
    reader: Reader
    limits: Limits
    folder: Path
    largest: int
    stopped: Callable[[], bool] = lambda: False
    force: bool = False


class Tiles:
    """What runs large pictures, one at a time.

    Parameters
    ----------
    tiling : Tiling
        How they are cut.
    equipment : Equipment
        What they are run with.
    deviation : dict or None
        By how much maps differ from those of one pass, if that has been measured.
    on_note : callable
        Called with a sentence about what a person may not expect.

    Attributes
    ----------
    deviation : dict or None
        By level: the largest difference, as a share of the largest value; measured on a part of the first picture.
    """

    def __init__(
        self,
        tiling: Tiling,
        equipment: Equipment,
        deviation: dict[str, float] | None = None,
        on_note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.tiling, self.deviation = tiling, deviation
        self._with, self._on_note = equipment, on_note
        self._alone = threading.Lock()
        self._at_a_time = 1
        self._clock = 0.0
        self._reading: tuple[float, Item] | None = None
        self._stage: Stage[Any] | None = None

    def check(self) -> None:
        """Check whether reading a part of a picture hangs; called every `LOOK_EVERY` seconds.

        Raises
        ------
        StuckError
            If so.
        """
        self._clock += LOOK_EVERY
        reading = self._reading
        if reading and self._clock - reading[0] > self._with.limits.time_limit:
            if self._stage:
                self._stage.close()  # which ends all waiting for it
            raise StuckError(reading[1])

    @property
    def most_passes(self) -> int:
        """How many passes there may be at a time."""
        return self._with.forwards

    def run(self, image: Large, passes: int) -> Arrays | None:
        """Run a picture in so many passes at a time; returns None if the run is stopped meanwhile.

        Raises
        ------
        UnreadableError
            If it cannot be read, or its maps are larger than an output may be.
        TooLargeError
            If a device does not have enough memory for a tile.
        """
        size = image.frame.input[::-1]
        with self._alone, self._opened(image) as section:
            self._at_a_time = passes
            if self.deviation is None:
                self.deviation = self._measured(image, section, size)
            mosaics = self._run(image, section, size)
        if mosaics is None:
            return None
        maps: list[Any] = [[_array_of(mosaic)] for mosaic, _ in mosaics]
        return Arrays(maps, [[finite] for _, finite in mosaics])

    @contextmanager
    def _opened(self, image: Large) -> Iterator[Section]:
        """Open a picture for its parts to be read."""
        preprocessor = self._with.computers[0].pyramid.preprocessor
        assert isinstance(preprocessor, Native)  # noqa: S101 - tiles are of photos at their own size
        if image.pixels is not None:  # which are placed already
            yield lambda rows, columns: image.pixels[rows, columns]  # type: ignore[index]
            return
        try:
            with (
                locators.opened(image.item.path, self._with.limits, known=image.item.stat) as file,
                windows.opened(file, image.item.path, self._with.limits, nullcontext, self.tiling.mpp) as source,
            ):
                self._require_memory(image, source)
                yield partial(self._section, preprocessor, image, source)
        except (OSError, ValueError) as error:  # opened before, and no longer there
            raise unreadable(error, image.item.path) from error

    def _section(self, preprocessor: Native, image: Large, source: Windows, rows: slice, columns: slice) -> Pixels:
        """Read a part of a picture; decoders raise far more than OSError."""
        self._reading = self._clock, image.item
        try:
            with self._with.reader.marked(image.item):
                return preprocessor.section(image.frame, source.size, rows, columns, source.read)
        except UnreadableError:
            raise
        except Exception as error:
            raise unreadable(error, image.item.path) from error
        finally:
            self._reading = None

    def _require_memory(self, image: Large, source: Windows) -> None:
        """Say what a picture takes that can only be decoded as a whole, and refuse it where that is too much."""
        there = resources.memory().left
        size, way_out = amount_of(source.as_a_whole), "a TIFF in tiles or strips is read part by part"
        if there is not None and source.as_a_whole > there and not self._with.force:
            raise UnreadableError(
                "decode",
                f"decoded as a whole it takes {size} of memory, and {amount_of(there)} are available; {way_out}",
            )
        if source.as_a_whole > MUCH:
            self._on_note(f"{image.item.key} is decoded as a whole, which takes {size} of memory; {way_out}")

    def _run(self, image: Large, section: Section, size: Size) -> list[tuple[Mosaic, bool]] | None:
        """Run all tiles; returns the map of each field, and whether all of it is finite."""
        spans = [self.tiling.spans(side) for side in size]
        mosaics: list[Mosaic] = []
        finite: list[bool] = []
        with self._passes(image, section, size) as passes:
            for row, first, arrays in passes:
                if self._with.stopped():
                    return None
                mosaics = mosaics or self._mosaics(arrays, size)
                finite = finite or [True] * len(mosaics)
                columns = range(first, min(first + self._with.batch_size, len(spans[1])))
                for place, (mosaic, values) in enumerate(zip(mosaics, arrays.values, strict=True)):
                    for position, column in enumerate(columns):
                        mosaic.add(row, column, array_of(values[position]))
                        finite[place] &= bool(arrays.finite[place][position])
                    if columns[-1] == len(spans[1]) - 1:
                        mosaic.finish(row)
        return list(zip(mosaics, finite, strict=True))

    @contextmanager
    def _passes(self, image: Large, section: Section, size: Size) -> Iterator[Iterator[tuple[int, int, Arrays]]]:
        """Run the tiles, in order: the row and the first column of each pass, and its arrays."""
        rows, columns = (self.tiling.spans(side) for side in size)
        batch_size, computers = self._with.batch_size, self._with.computers

        def tiles() -> Iterator[tuple[int, int, list[Pixels]]]:
            for row, down in enumerate(rows):
                band = section(slice(down.first, down.last), slice(None))
                for first in range(0, len(columns), batch_size):
                    across = columns[first : first + batch_size]
                    yield row, first, [band[:, span.first : span.last] for span in across]

        def computed(task: tuple[int, int, list[Pixels]]) -> tuple[int, int, Arrays]:
            row, first, pixels = task
            computer = computers[(row + first // batch_size) % len(computers)]
            return row, first, self._pass(computer, image, pixels)

        pool = ThreadPoolExecutor(self._at_a_time)
        stage = self._stage = Stage(pool, computed, tiles(), self._at_a_time + 1, LOOK_EVERY)
        try:
            yield stage
        finally:
            stage.close()
            pool.shutdown(wait=True, cancel_futures=True)

    def _pass(self, computer: Computer, image: Large, pixels: Sequence[Pixels]) -> Arrays:
        with computer.at_work():
            stacked = computer.stack(
                [torch.from_numpy(np.ascontiguousarray(each)) for each in pixels], self._with.batch_size
            )
            return computer(stacked, [Photo(image.item.key, image.frame)] * len(pixels))

    def _mosaics(self, arrays: Arrays, size: Size) -> list[Mosaic]:
        """Make what holds the maps of a picture, whose sizes follow from those of the first tile's."""
        height, width = self.tiling.window(size)
        shapes = [tuple(values[0].shape) for values in arrays.values]
        wholes = [(shape[0], shape[1] * size[0] // height, shape[2] * size[1] // width) for shape in shapes]
        dtypes = [array_of(values[0][:0]).dtype for values in arrays.values]
        total = sum(math.prod(shape) * dtype.itemsize for shape, dtype in zip(wholes, dtypes, strict=True))
        if total > self._with.largest:
            raise UnreadableError(
                "write",
                f"its maps take {amount_of(total)}, but a file holds {amount_of(self._with.largest)}; fewer levels "
                "(--strides) or --dtype float16 may help",
            )
        found = []
        for shape, dtype in zip(wholes, dtypes, strict=True):
            rows, columns = (self.tiling.shares(side, cells) for side, cells in zip(size, shape[1:], strict=True))
            target = OnDisk(self._with.folder, shape, dtype) if total > IN_MEMORY else InMemory(shape, dtype)
            found.append(Mosaic(target, rows, columns, dtype))
        return found

    def _measured(self, image: Large, section: Section, size: Size) -> dict[str, float]:
        """Compare the maps of a part of a picture, in tiles, with those in one pass."""
        (top, left), (height, width) = self.tiling.part(size)

        def part(rows: slice, columns: slice) -> Pixels:
            (above, below, _), (before, after, _) = rows.indices(height), columns.indices(width)
            return section(slice(top + above, top + below), slice(left + before, left + after))

        tiled = self._run(image, part, (height, width))
        whole = self._pass(self._with.computers[0], image, [part(slice(None), slice(None))])
        deviations = {}
        for field, values, (mosaic, _) in zip(self._with.computers[0].fields, whole.values, tiled or (), strict=True):
            expected, got = (np.asarray(each, np.float32) for each in (array_of(values[0]), _array_of(mosaic)))
            scale = max(float(np.abs(expected).max(initial=0)), float(np.finfo(np.float32).tiny))
            deviations[field.key] = float(np.abs(got - expected).max(initial=0)) / scale
        return deviations


def _array_of(mosaic: Mosaic) -> Any:
    return mosaic.target.values if isinstance(mosaic.target, InMemory) else mosaic.target
