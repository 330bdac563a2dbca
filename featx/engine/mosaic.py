# Mosaics: pictures that go through the network tile by tile.
"""Running one large picture, in bounded memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec import structs

from featx.engine import resources
from featx.engine.bands import Chain, Mosaic, chains_of, fields_of, in_memory, taken_whole
from featx.engine.batching import Large
from featx.engine.children import LOOK_EVERY
from featx.engine.computing import Arrays, Computer
from featx.engine.isolation import Reader
from featx.engine.reducing import Photo
from featx.engine.resources import Workers
from featx.engine.stages import Stage
from featx.errors import StuckError, UnreadableError
from featx.images import locators, windows
from featx.images.fitting import Native
from featx.images.placing import unreadable
from featx.images.tiles import Size, Tiling
from featx.images.windows import Pixels, Windows
from featx.options import Limits
from featx.runs.formats import too_large
from featx.runs.tensors import array_of
from featx.text import amount_of
from featx.values import Field, Item

# A picture that is decoded as a whole and takes this many bytes gets a note.
MUCH = 1 << 29

# Makes what takes the rows of maps, for those of which something is made.
Make = Callable[[Sequence[Field]], dict[int, Chain]]

# Gives the pixels of a part of the input: its rows, and its columns.
Section = Callable[[slice, slice], Pixels]


@dataclass(frozen=True, slots=True)
class Equipment:
    """What tiles are run with.

    Attributes
    ----------
    computers : sequence of Computer
        One per device; passes are assigned round-robin.
    workers : Workers
        How many tiles are in a pass, and how many passes run at a time.
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
    workers: Workers
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
        first = equipment.computers[0]
        self._whole = taken_whole(first.reductions)
        self._fields = first.whole if self._whole else first.fields
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
        return self._with.workers.forwards

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
            mosaics = self._run(image, section, size, partial(self._chains, Photo(image.item.key, image.frame)))
        if mosaics is None:
            return None
        made = [(array, finite and still) for mosaic, finite in mosaics.values() for array, still in mosaic.made()]
        sizes = {self._fields[place].key: mosaic.size for place, (mosaic, _) in mosaics.items()}
        return Arrays([[array] for array, _ in made], [[finite] for _, finite in made], sizes)

    @contextmanager
    def _opened(self, image: Large) -> Iterator[Section]:
        """Open a picture for its parts to be read."""
        preprocessor = self._with.computers[0].pyramid.preprocessor
        assert isinstance(preprocessor, Native)  # noqa: S101 - tiles are of photos at their own size
        if image.pixels is not None:  # which are placed already
            yield lambda rows, columns: image.pixels[rows, columns]  # type: ignore[index]
            return
        path, limits = image.item.path, self._with.limits
        with ExitStack() as stack:
            try:
                file = stack.enter_context(locators.opened(path, limits, known=image.item.stat))
                source = stack.enter_context(windows.opened(file, path, limits, nullcontext, self.tiling.mpp))
                self._require_memory(image, source)
            except (OSError, ValueError) as error:  # opened before, and no longer there
                raise unreadable(error, path) from error
            # Outside the handler: a full disk, which maps wait on, is not the picture's fault.
            yield partial(self._section, preprocessor, image, source)

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

    def _run(self, image: Large, section: Section, size: Size, make: Make) -> dict[int, tuple[Mosaic, bool]] | None:
        """Run all tiles; returns the maps of which something is made, and whether all of each is finite."""
        spans = [self.tiling.spans(side) for side in size]
        mosaics: dict[int, Mosaic] = {}
        finite = dict.fromkeys(range(len(self._fields)), True)
        with self._passes(image, section, size) as passes:
            for row, first, arrays in passes:
                if self._with.stopped():
                    return None
                mosaics = mosaics or self._mosaics(arrays, size, make)
                columns = range(first, min(first + self._with.workers.batch_size, len(spans[1])))
                for place, mosaic in mosaics.items():
                    for position, column in enumerate(columns):
                        mosaic.add(row, column, array_of(arrays.values[place][position]))
                        finite[place] &= bool(arrays.finite[place][position])
                    if columns[-1] == len(spans[1]) - 1:
                        mosaic.finish(row)
        return {place: (mosaic, finite[place]) for place, mosaic in mosaics.items()}

    @contextmanager
    def _passes(self, image: Large, section: Section, size: Size) -> Iterator[Iterator[tuple[int, int, Arrays]]]:
        """Run the tiles, in order: the row and the first column of each pass, and its arrays."""
        rows, columns = (self.tiling.spans(side) for side in size)
        batch_size, computers = self._with.workers.batch_size, self._with.computers

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
                [torch.from_numpy(np.ascontiguousarray(each)) for each in pixels], self._with.workers.batch_size
            )
            return computer(stacked, [Photo(image.item.key, image.frame)] * len(pixels), whole=self._whole)

    def _mosaics(self, arrays: Arrays, size: Size, make: Make) -> dict[int, Mosaic]:
        """Make what puts the maps of a picture together, whose sizes follow from those of the first tile's."""
        height, width = self.tiling.window(size)
        shapes = [tuple(values[0].shape) for values in arrays.values]
        wholes = [(shape[0], shape[1] * size[0] // height, shape[2] * size[1] // width) for shape in shapes]
        maps = [structs.replace(field, shape=shape) for field, shape in zip(self._fields, wholes, strict=True)]
        found = {}
        for place, chain in make(maps).items():
            sides = zip(size, maps[place].lengths[1:], strict=True)
            rows, columns = (self.tiling.shares(side, cells) for side, cells in sides)
            found[place] = Mosaic(chain, rows, columns, np.dtype(maps[place].dtype))
        return found

    def _chains(self, photo: Photo, maps: Sequence[Field]) -> dict[int, Chain]:
        """Make what takes the rows of a picture's maps."""
        steps = self._with.computers[0].reductions
        stored = fields_of(steps, maps)
        if (total := sum(field.bytes for field in stored)) > self._with.largest:
            raise UnreadableError("write", too_large(total, self._with.largest))
        return chains_of(steps, maps, photo, self._with.folder)

    def _measured(self, image: Large, section: Section, size: Size) -> dict[str, float] | None:
        """Compare the maps of a part of a picture, in tiles, with those in one pass; None if they are not finite."""
        (top, left), (height, width) = self.tiling.part(size)

        def part(rows: slice, columns: slice) -> Pixels:
            (above, below, _), (before, after, _) = rows.indices(height), columns.indices(width)
            return section(slice(top + above, top + below), slice(left + before, left + after))

        tiled = self._run(image, part, (height, width), in_memory) or {}
        whole = self._pass(self._with.computers[0], image, [part(slice(None), slice(None))])
        deviations = {}
        for place, (mosaic, _) in tiled.items():
            ((found, _),) = mosaic.made()
            expected, got = (np.asarray(each, np.float32) for each in (array_of(whole.values[place][0]), found))
            if not (np.isfinite(expected).all() and np.isfinite(got).all()):
                return None  # another picture's may be
            scale = max(float(np.abs(expected).max(initial=0)), float(np.finfo(np.float32).tiny))
            deviations[self._fields[place].key] = float(np.abs(got - expected).max(initial=0)) / scale
        return deviations
