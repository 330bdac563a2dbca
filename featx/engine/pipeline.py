# The pipeline: read, batch, compute, write, commit; overlapped, bounded, and in order.
"""From items to outcomes.

Every stage is a pool of threads that works a bounded number of values ahead of the next stage, and passes them on in
order. Reading, computing and writing all release the GIL, so that every core is busy as long as there is work; memory
does not grow with the number of images. A bad image is a value, not an exception.

Outputs are committed in groups, at most a few seconds after the first of each, and also when the run is cut short: a
slow pass, a signal or a full disk does not lose anything finished before.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Any

import numpy as np
import torch
from msgspec import structs
from torch import Tensor

from featx.engine.children import LOOK_EVERY
from featx.engine.computing import Arrays, Computer
from featx.engine.isolation import Reader, ReadingThreads
from featx.engine.reducing import Photo
from featx.engine.resources import Workers
from featx.engine.stages import Stage
from featx.errors import ROOM, OutputError, StuckError, UnreadableError
from featx.images.frame import Frame
from featx.images.locators import stat_of
from featx.paths import path_text
from featx.runs.formats import Record, Stored, Writer
from featx.values import BOXES, Item, Outcome, Stat

# Batches' worth of values that may wait for a batch to fill: many broken images must not wait for a good one.
PATIENCE = 4

# File-system errors that concern a name, not the disk.
OF_THE_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)


@dataclass(frozen=True, slots=True)
class Ready:
    """An image waiting for its batch: (H, W, 3) uint8 pixels of the model's input size."""

    item: Item
    stat: Stat
    pixels: Tensor
    frame: Frame
    messages: str


@dataclass(frozen=True, slots=True)
class Computed:
    """An image whose arrays are waiting to be written: its place in the batch."""

    image: Ready
    arrays: Arrays
    position: int


@dataclass(frozen=True, slots=True)
class Written:
    """An image whose arrays are being written, and its outcome once they are in place."""

    outcome: Outcome
    stored: Stored


def run(
    computers: Sequence[Computer],
    items: Iterable[Item],
    writer: Writer,
    workers: Workers,
    reader: Reader,
    stopped: Callable[[], bool] = lambda: False,
) -> Generator[list[Outcome]]:
    """Extract features of every item, and yield the outcomes in order, group by group.

    A group is yielded as soon as its outputs are in place; all of it can be recorded in the manifest. A batch always
    has its full size, with the last one padded with blanks, so that neither the order nor an interruption can change a
    bit of the result.

    Parameters
    ----------
    computers : sequence of Computer
        One per device.
    items : iterable of Item
        The images.
    writer : Writer
        Writes them to the run's folder.
    workers : Workers
        Batch size, and the number of threads for each stage.
    reader : Reader
        What reads the images.
    stopped : callable
        Whether to commit what is finished, finish what is being computed, and skip the rest.

    Raises
    ------
    StuckError
        If an image hangs. Run again without that one; its thread is lost here.
    OutputError
        If the folder cannot be written: nothing after that image is tried. What was finished before is yielded first.
    """
    work = Work(computers, writer, workers.batch_size, reader)
    with ExitStack() as stack:

        def stage(pool: Executor, function: Callable[..., Any], values: Iterable[Any], depth: int) -> Stage[Any]:
            """Begin a stage; it ends when the run does, after the stages that follow it."""
            reads = isinstance(pool, ReadingThreads)
            made = Stage(pool, function, values, depth, LOOK_EVERY, work.check if reads else None)

            def end(kind: type[BaseException] | None, *_: object) -> None:
                """Wait for the threads, unless one may hang, or time is short."""
                may_hang = reads and kind is not None
                made.close()
                pool.shutdown(wait=not may_hang and kind is not StuckError and not stopped(), cancel_futures=True)

            stack.push(end)
            return made

        depth = workers.readers + 2 * workers.batch_size
        prepared = stage(ReadingThreads(workers.readers), work.prepare, items, depth)
        batches = _batches(prepared, workers.batch_size, stopped)
        computed = stage(ThreadPoolExecutor(workers.forwards), work.compute, batches, workers.forwards + 1)
        images = chain.from_iterable(computed)
        written = stage(ThreadPoolExecutor(workers.writers), work.write, images, workers.batch_size + 1)
        yield from _commit_in_groups(work, written, writer, max(writer.group, workers.batch_size), stopped)


def _commit_in_groups(
    work: Work, written: Stage[Written | Outcome], writer: Writer, size: int, stopped: Callable[[], bool]
) -> Iterator[list[Outcome]]:
    """Commit what is written once there are `size`, or as the writer has it, or when nothing more will come."""
    group: list[Written | Outcome] = []
    began, held = 0.0, 0
    try:
        while True:
            full = len(group) >= size or held > writer.room
            if full or (group and (stopped() or time.monotonic() - began >= writer.seconds)):
                finished, group, held = group, [], 0
                yield from work.commit(finished)
            if not written.ready(LOOK_EVERY):
                continue
            value = next(written, None)
            if value is None:
                break
            began = began if group else time.monotonic()
            group.append(value)
            held += value.stored.bytes if isinstance(value, Written) else 0
    except Exception:
        work.abandon(group)
        with suppress(OutputError):  # report what ended the run instead
            yield from work.commit(group)
        raise
    yield from work.commit(group)


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
    """

    def __init__(self, computers: Sequence[Computer], writer: Writer, batch_size: int, reader: Reader) -> None:
        self._computers = computers
        self._writer = writer
        self._batch_size = batch_size
        self._reader = reader
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

    def prepare(self, item: Item) -> Ready | Outcome:
        """Read, decode and resize an image; any error becomes its outcome."""
        with self._reader.timed(item):
            stat = stat_of(item.path)  # before reading, so that a change in between is noticed next time
        try:
            placed = self._reader(item)
        except UnreadableError as error:
            hashed = structs.replace(stat, sha256=error.sha256) if stat else None
            return Outcome(item, hashed, stage=error.stage, error=error.reason, messages=error.messages)
        hashed = structs.replace(stat, sha256=placed.sha256) if stat else Stat(0, 0)
        return Ready(item, hashed, torch.from_numpy(placed.pixels), placed.frame, placed.messages)

    def compute(self, batch: Sequence[Ready | Outcome]) -> list[Computed | Outcome]:
        """Run the network on the images of a batch."""
        images = [image for image in batch if isinstance(image, Ready)]
        if not images:
            return [outcome for outcome in batch if isinstance(outcome, Outcome)]
        computer = self._computers[next(self._turn) % len(self._computers)]
        with computer.at_work():
            pixels = computer.stack([image.pixels for image in images], self._batch_size)
            arrays = computer(pixels, [Photo(image.item.key, image.frame) for image in images])
        place = count()
        return [Computed(value, arrays, next(place)) if isinstance(value, Ready) else value for value in batch]

    def write(self, value: Computed | Outcome) -> Written | Outcome:
        """Start writing an image's arrays."""
        if isinstance(value, Outcome):
            return value
        image, fields = value.image, self._computers[0].fields
        for field, finite in zip(fields, value.arrays.finite, strict=True):
            if not finite[value.position]:
                error = f"{field.key} holds NaN or infinity{self._more_precise()}"
                return Outcome(image.item, image.stat, stage="forward", error=error, messages=image.messages)
        named = zip(fields, value.arrays.values, strict=True)
        arrays = {field.key: np.asarray(values[value.position]) for field, values in named}
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
            boxes=len(arrays[BOXES]) if BOXES in arrays else None,
            messages=image.messages,
        )
        return Written(outcome, stored)

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
        except OSError as error:
            if len(group) == 1 and error.errno in OF_THE_NAME:
                yield [_unnamed(written[0].outcome.item, written[0].outcome.stat, error)]
                return
            refused = OutputError(f"Outputs cannot be written: {error.strerror or error}", ROOM)
            if len(group) == 1:
                raise refused from error
            for value in group:
                try:
                    yield from self.commit([value])
                except OutputError:
                    raise refused from error
            if error.errno not in OF_THE_NAME:  # a disk that has failed once is not trusted again
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


def _unnamed(item: Item, stat: Stat | None, error: OSError) -> Outcome:
    return Outcome(item, stat, stage="write", error=f"no name for this disk: {error.strerror}")


def _batches(
    values: Iterable[Ready | Outcome], size: int, stopped: Callable[[], bool]
) -> Iterator[list[Ready | Outcome]]:
    """Group so that each has `size` images, or fewer among many failures, which travel with them."""
    batch: list[Ready | Outcome] = []
    images = 0
    for value in values:
        if stopped():
            return
        batch.append(value)
        images += isinstance(value, Ready)
        if images == size or len(batch) == PATIENCE * size:
            yield batch
            batch, images = [], 0
    if batch:
        yield batch
