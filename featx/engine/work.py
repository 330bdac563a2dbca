# Work: what the pipeline's threads do with one image or one batch.
"""Reading, computing, writing and committing, one value at a time."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

import torch
from msgspec import structs

from featx.dtypes import SCALE
from featx.engine.batching import Large, Ready, Value, by_size, in_order
from featx.engine.children import LOOK_EVERY
from featx.engine.computing import Arrays, Computer, TooLargeError
from featx.engine.isolation import Reader, ReadingThreads
from featx.engine.mosaic import Tiles
from featx.engine.reducing import Photo
from featx.engine.room import Need, Room
from featx.engine.tiling import beside_passes
from featx.errors import ROOM, OutputError, StoreError, StuckError, UnreadableError
from featx.images import placing
from featx.images.locators import stat_of
from featx.paths import path_text
from featx.runs.formats import Record, Stored, Writer, too_large
from featx.runs.tensors import array_of
from featx.values import BOXES, Item, Outcome, Stat

# File-system errors that concern a name, not the disk.
OF_THE_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)

# What a batch takes of a memory that is not limited.
NOTHING = Need(0, 0)


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one pass, or of several where one is cut into tiles, with the failures among them, and their memory."""

    values: Sequence[Value]
    need: Need = NOTHING
    passes: int = 1


@dataclass(frozen=True, slots=True)
class Computed:
    """An image whose arrays wait to be written: its place in the batch, and the bytes that it holds."""

    image: Ready | Large
    arrays: Arrays
    position: int
    holds: int


@dataclass(frozen=True, slots=True)
class Written:
    """An image whose arrays are being written, and its outcome once they are in place."""

    outcome: Outcome
    stored: Stored


class Work:
    """The work of the threads, one value at a time.

    Parameters
    ----------
    computers : sequence of Computer
        One per device; batches are assigned round-robin.
    writer : Writer
        Writes arrays to the run's folder.
    batch_size : int
        Images in one forward pass.
    reader : Reader
        What reads the images.
    room : Room or None
        The memory that images with sizes of their own share.
    tiles : Tiles or None
        What runs those that are cut into tiles.
    """

    def __init__(
        self,
        computers: Sequence[Computer],
        writer: Writer,
        batch_size: int,
        reader: Reader,
        room: Room | None = None,
        tiles: Tiles | None = None,
    ) -> None:
        self._computers = computers
        self._tiles = tiles
        self._writer = writer
        self._batch_size = batch_size
        self._reader = reader
        self._room = room
        self._turn = count()

    def check(self) -> None:
        """Check whether the image being waited for hangs.

        Raises
        ------
        StuckError
            If so.
        """
        self._reader.waited(LOOK_EVERY)
        if (stuck := self._reader.stuck()) is not None:
            raise StuckError(stuck)

    def prepare(self, item: Item) -> Value:
        """Read, decode and resize an image, or look at one that is cut into tiles; any error becomes its outcome."""
        with self._reader.timed(item):
            stat = item.stat or stat_of(item.path)  # before reading, so that a change in between is noticed next time
        try:
            placed = self._reader(structs.replace(item, stat=stat))
        except UnreadableError as error:
            hashed = structs.replace(stat, sha256=error.sha256) if stat else None
            return Outcome(item, hashed, stage=error.stage, error=error.reason, messages=error.messages)
        hashed = structs.replace(stat, sha256=placed.sha256) if stat else Stat(0, 0)
        if isinstance(placed, placing.Large):
            return Large(item, hashed, placed.frame, placed.messages, placed.as_a_whole)
        if self._tiles and self._tiles.tiling.cuts(placed.pixels.shape[:2]):  # read in a process of its own
            return Large(item, hashed, placed.frame, placed.messages, pixels=placed.pixels)
        return Ready(item, hashed, torch.from_numpy(placed.pixels), placed.frame, placed.messages)

    def batches(self, values: Iterable[Value], stopped: Callable[[], bool]) -> Iterator[Batch]:
        """Group images into batches; those with sizes of their own by size, each as soon as there is room for it."""
        if self._room is None:
            yield from (Batch(values) for values in in_order(values, self._batch_size, stopped))
            return
        for group in by_size(values, self._batch_size, stopped):
            size = next((self._size_of_pass(value) for value in group if not isinstance(value, Outcome)), None)
            if size is None:
                yield Batch(group)
            elif refusal := self._room.refusal(*size, tiled=self._tiles is not None):
                yield Batch([value if isinstance(value, Outcome) else _failed(value, refusal) for value in group])
            else:
                yield self._taken(self._room, group, size)

    def _taken(self, room: Room, group: Sequence[Value], size: tuple[int, int]) -> Batch:
        """Take the memory for a group."""
        image, tiles = group[0], self._tiles
        if tiles is None or not isinstance(image, Large):
            return Batch(group, room.take(*size))
        passes = room.passes(*size, tiles.most_passes)
        beside = partial(beside_passes, tiles.tiling, image.frame.input[::-1])
        need = room.take(*size, passes, lambda arrays: beside(arrays // self._batch_size) + image.as_a_whole)
        return Batch(group, need, passes)

    def _size_of_pass(self, image: Ready | Large) -> tuple[int, int]:
        """Return height and width of what goes through the network."""
        if isinstance(image, Large):
            assert self._tiles is not None  # noqa: S101 - which made it large
            return self._tiles.tiling.window(image.frame.input[::-1])
        height, width = image.pixels.shape[:2]
        return height, width

    def compute(self, batch: Batch) -> list[Computed | Outcome]:
        """Run the network on the images of a batch."""
        if isinstance(batch.values[0], Large):
            return self._compute_tiles(batch.values[0], batch)
        values = [value for value in batch.values if not isinstance(value, Large)]  # which come alone
        images = [image for image in values if isinstance(image, Ready)]
        if not images:
            return [outcome for outcome in values if isinstance(outcome, Outcome)]
        computer = self._computers[next(self._turn) % len(self._computers)]
        try:
            with computer.at_work():
                pixels = computer.stack([image.pixels for image in images], self._batch_size)
                arrays = computer(pixels, [Photo(image.item.key, image.frame) for image in images])
        except TooLargeError as error:
            if self._room is None:
                raise
            self._give_back(batch.need.all)
            reason = f"{error.message}; a smaller --max-side may help"
            return [_failed(value, reason) if isinstance(value, Ready) else value for value in values]
        each = batch.need.arrays // len(images)
        self._give_back(batch.need.all - each * len(images))
        place = count()
        return [Computed(value, arrays, next(place), each) if isinstance(value, Ready) else value for value in values]

    def _compute_tiles(self, image: Large, batch: Batch) -> list[Computed | Outcome]:
        """Run the network on an image's tiles; it has no outcome yet if the run is stopped meanwhile."""
        assert self._tiles is not None  # noqa: S101 - which made it large
        try:
            arrays = self._tiles.run(image, batch.passes)
        except TooLargeError as error:
            return [_failed(image, f"{error.message}; a smaller --tile may help")]
        except UnreadableError as error:
            return [Outcome(image.item, image.stat, stage=error.stage, error=error.reason, messages=image.messages)]
        except OSError as error:  # of the disk that holds the maps
            raise OutputError(f"The output of {image.item.key} cannot be written: {error.strerror}", ROOM) from error
        finally:
            self._give_back(batch.need.all)
        return [] if arrays is None else [Computed(image, arrays, 0, 0)]

    def _give_back(self, amount: int) -> None:
        if self._room:
            self._room.give_back(amount)

    def write(self, value: Computed | Outcome) -> Written | Outcome:
        """Start writing an image's arrays."""
        if isinstance(value, Outcome):
            return value
        try:
            return self._write(value)
        finally:
            self._give_back(value.holds)

    def _write(self, value: Computed) -> Written | Outcome:
        image, fields = value.image, self._computers[0].fields
        for field, finite in zip(fields, value.arrays.finite, strict=True):
            if not finite[value.position]:
                error = f"{field.key.removesuffix(SCALE)} holds NaN or infinity{self._more_precise()}"
                return Outcome(image.item, image.stat, stage="forward", error=error, messages=image.messages)
        named = zip(fields, value.arrays.values, strict=True)
        arrays = {field.key: _array(values[value.position]) for field, values in named}
        if (size := sum(values.nbytes for values in arrays.values())) > self._writer.largest:
            error = too_large(size, self._writer.largest)
            return Outcome(image.item, image.stat, stage="write", error=error, messages=image.messages)
        try:
            stored = self._writer.write(Record(image.item, path_text(image.item.path), image.frame.original, arrays))
        except OSError as error:
            if error.errno in OF_THE_NAME:
                return _unnamed(image.item, image.stat, error)
            raise OutputError(f"The output of {image.item.key} cannot be written: {error.strerror}", ROOM) from error
        outcome = Outcome(
            image.item,
            image.stat,
            size=image.frame.original,
            frame=image.frame,
            bytes=stored.bytes,
            sha256=stored.sha256,
            levels=self._sizes(arrays) if self._room else None,
            pooled=self._pooled(value.arrays.sizes, arrays) if self._room else None,
            boxes=len(arrays[BOXES]) if BOXES in arrays else None,
            messages=image.messages,
        )
        return Written(outcome, stored)

    def _sizes(self, arrays: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
        """Return height and width of the maps."""
        maps = self._computers[0].pyramid.maps
        return {level.key: arrays[level.key].shape[1:] for level in maps if level.key in arrays}

    def _pooled(self, before: Mapping[str, tuple[int, int]], arrays: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
        """Return height and width of the maps before the grid, where it changes them."""
        return {
            name: size
            for name, size in before.items()
            if name in self._sizes(arrays) and size != arrays[name].shape[1:]
        }

    def _more_precise(self) -> str:
        """Suggest what may help against values out of range."""
        computer = self._computers[0]
        if computer.pyramid.precision != "fp32":
            return "; --precision fp32 may help"
        return "; --dtype float32 may help" if any(field.dtype == "float16" for field in computer.fields) else ""

    def commit(self, group: Sequence[Written | Outcome]) -> Iterator[list[Outcome]]:
        """Have outputs put in place, safely on disk; if one fails, those before it are kept."""
        written = [value for value in group if isinstance(value, Written)]
        try:
            outputs = iter(self._writer.commit([value.stored for value in written]))
        except (OSError, StoreError) as error:
            of_the_name = isinstance(error, OSError) and error.errno in OF_THE_NAME
            if len(group) == 1 and isinstance(error, OSError) and of_the_name:
                yield [_unnamed(written[0].outcome.item, written[0].outcome.stat, error)]
                return
            refused = _refused(error)
            if len(group) == 1:
                raise refused from error
            for value in group:
                try:
                    yield from self.commit([value])
                except OutputError:
                    raise refused from error
            if not of_the_name:  # a disk that has failed once is not trusted again
                raise refused from error
            return
        if group:
            yield [
                replace(value.outcome, output=next(outputs)) if isinstance(value, Written) else value for value in group
            ]

    def abandon(self, kept: Sequence[Written | Outcome]) -> None:
        """Remove what was begun and is not among these: finished outputs may need its space."""
        self._writer.abandon([value.stored for value in kept if isinstance(value, Written)])


def stat_within(path: str, seconds: float = 5.0) -> Stat | None:
    """Size and time of a file on a disk that may not answer."""
    thread = ReadingThreads(1)
    with suppress(TimeoutError):
        return thread.submit(stat_of, path).result(seconds)  # type: ignore[no-any-return]
    return None


def _refused(error: OSError | StoreError) -> OutputError:
    if isinstance(error, StoreError):
        return error
    return OutputError(f"Outputs cannot be written: {error.strerror or error}", ROOM)


def _unnamed(item: Item, stat: Stat | None, error: OSError) -> Outcome:
    return Outcome(item, stat, stage="write", error=f"no name for this disk: {error.strerror}")


def _array(values: Any) -> Any:
    return array_of(values) if isinstance(values, torch.Tensor) else values


def _failed(image: Ready | Large, reason: str) -> Outcome:
    return Outcome(image.item, image.stat, stage="forward", error=reason, messages=image.messages)
