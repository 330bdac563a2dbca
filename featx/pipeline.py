# The work on one image after the other: read, batch, compute, write, settle; overlapped, bounded, and in order.
"""From items to outcomes.

Every stage is a pool of threads that works a bounded number of values ahead of the next stage, and hands them on in
order. Reading, computing and writing all leave Python's lock, so that every core has something to do as long as there
is work at all; memory does not grow with the number of images. A bad image is a value, not an exception.
"""

from __future__ import annotations

import errno
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import TypeVar

import torch
from torch import Tensor

from featx.computing import Arrays, Computer
from featx.decoding import UnreadableError
from featx.errors import OutputError, StuckError
from featx.formats import Record, Stored, Writer
from featx.geometry import Frame
from featx.isolation import LOOK_EVERY, Reader, ReadingThreads
from featx.manifest import path_text, stat_of
from featx.records import Item, Outcome, Stat, Workers

# Values that may wait for a batch to fill, in batches: a run of broken images is not to be held back for a sound one.
PATIENCE = 4

ROOM = "Make room, and run it again to resume"

# Errors of a file system that are about a name, not about the disk.
OF_THE_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)

Value = TypeVar("Value")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Ready:
    """An image that awaits its batch: (H, W, 3) uint8 pixels of the model's input size."""

    item: Item
    stat: Stat
    pixels: Tensor
    frame: Frame
    messages: str


@dataclass(frozen=True, slots=True)
class Computed:
    """An image whose arrays wait to be written: its place in the batch."""

    image: Ready
    arrays: Arrays
    position: int


@dataclass(frozen=True, slots=True)
class Written:
    """An image whose arrays are on their way, and what becomes of it when they are in their place."""

    outcome: Outcome
    stored: Stored


def run(
    computers: Sequence[Computer],
    items: Iterable[Item],
    writer: Writer,
    workers: Workers,
    reader: Reader,
    stopped: Callable[[], bool] = lambda: False,
) -> Generator[Outcome]:
    """Extract features of every item, and say what became of each, in their order.

    A batch always has its full size, the last one being filled up with blanks, so that neither the order nor an
    interruption can change a bit of the result.

    Parameters
    ----------
    computers : sequence of Computer
        One a device.
    items : iterable of Item
        The images.
    writer : Writer
        What puts them into the run's folder.
    workers : Workers
        Batch size, and how many threads do what.
    reader : Reader
        What reads the images.
    stopped : callable
        Whether to finish what is being computed, and leave the rest.

    Raises
    ------
    StuckError
        If an image hangs. Run it again without that one; here its thread is lost.
    OutputError
        If the folder cannot be written: nothing after that image is tried.
    """
    work = Work(computers, writer, workers.batch_size, reader)
    with ExitStack() as stack:

        def end(pool: Executor, kind: type[BaseException] | None) -> None:
            """Wait for the threads, unless one of them may hang, or time is short."""
            may_hang = isinstance(pool, ReadingThreads) and kind is not None
            pool.shutdown(wait=not may_hang and kind is not StuckError and not stopped(), cancel_futures=True)

        def ahead(
            threads: int,
            function: Callable[[Value], Result],
            values: Iterable[Value],
            depth: int,
            wait: Callable[[Value, Future[Result]], Result] = lambda _, future: future.result(),
            executor: Callable[[int], Executor] = ThreadPoolExecutor,
        ) -> Iterator[Result]:
            pool = executor(threads)
            stack.push(lambda kind, *_: end(pool, kind))
            return _ahead(pool, function, values, depth, wait)

        depth = workers.readers + 2 * workers.batch_size
        prepared = ahead(workers.readers, work.prepare, items, depth, work.wait, ReadingThreads)
        batches = _batches(prepared, workers.batch_size, stopped)
        computed = ahead(workers.forwards, work.compute, batches, workers.forwards)
        written = ahead(workers.writers, work.write, chain.from_iterable(computed), workers.batch_size)
        together = groups(written, max(writer.group, workers.batch_size), writer.seconds)
        # Where a group takes its time to gather, what has become of it is not to wait for the next one.
        settled = ahead(1, work.settle, together, 1 if writer.seconds == math.inf else 0)
        yield from chain.from_iterable(settled)


class Work:
    """What the threads do, one value at a time.

    Parameters
    ----------
    computers : sequence of Computer
        One a device; batches go to them in turn.
    writer : Writer
        What puts arrays into the run's folder.
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

    def prepare(self, item: Item) -> Ready | Outcome:
        """Read, decode and resize an image; whatever is wrong with it becomes its outcome."""
        with self._reader.timed(item):
            stat = stat_of(item.path)  # before reading: a change in between then shows next time
        try:
            placed = self._reader(item)
        except UnreadableError as error:
            hashed = replace(stat, sha256=error.sha256) if stat else None
            return Outcome(item, hashed, stage=error.stage, error=error.reason, messages=error.messages)
        hashed = replace(stat, sha256=placed.sha256) if stat else Stat(0, 0)
        return Ready(item, hashed, torch.from_numpy(placed.pixels), placed.frame, placed.messages)

    def wait(self, _: Item, prepared: Future[Ready | Outcome]) -> Ready | Outcome:
        """Wait for an image, but not for ever."""
        while not prepared.done():
            with suppress(TimeoutError):
                return prepared.result(LOOK_EVERY)
            self._reader.waited(LOOK_EVERY)
            if (stuck := self._reader.stuck()) is not None:
                raise StuckError(stuck)
        return prepared.result()

    def compute(self, batch: Sequence[Ready | Outcome]) -> list[Computed | Outcome]:
        """Run the network on the images of a batch."""
        images = [image.pixels for image in batch if isinstance(image, Ready)]
        if not images:
            return [outcome for outcome in batch if isinstance(outcome, Outcome)]
        computer = self._computers[next(self._turn) % len(self._computers)]
        arrays = computer(computer.stack(images, self._batch_size))
        place = count()
        return [Computed(value, arrays, next(place)) if isinstance(value, Ready) else value for value in batch]

    def write(self, value: Computed | Outcome) -> Written | Outcome:
        """Begin to write an image's arrays."""
        if isinstance(value, Outcome):
            return value
        image, fields = value.image, self._computers[0].pyramid.fields
        for field, finite in zip(fields, value.arrays.finite, strict=True):
            if not finite[value.position]:
                error = f"{field.key} holds NaN or infinity{self._more_precise()}"
                return Outcome(image.item, image.stat, stage="forward", error=error, messages=image.messages)
        named = zip(fields, value.arrays.values, strict=True)
        arrays = {field.key: values[value.position].numpy() for field, values in named}
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
            frame=image.frame.to_json(),
            bytes=stored.bytes,
            sha256=stored.sha256,
            messages=image.messages,
        )
        return Written(outcome, stored)

    def _more_precise(self) -> str:
        """Say what may help against numbers out of range."""
        computer = self._computers[0]
        if computer.pyramid.precision != "fp32":
            return "; --precision fp32 may help"
        return "; --dtype float32 may help" if computer.dtype == torch.float16 else ""

    def settle(self, group: list[Written | Outcome]) -> list[Outcome]:
        """Have arrays put in their place, safe on the disk."""
        written = [value for value in group if isinstance(value, Written)]
        try:
            outputs = iter(self._writer.settle([value.stored for value in written]))
        except OSError as error:
            if error.errno in OF_THE_NAME and len(group) > 1:  # of one of them: one by one then
                return [outcome for value in group for outcome in self.settle([value])]
            if error.errno in OF_THE_NAME and written:
                return [_unnamed(written[0].outcome.item, written[0].outcome.stat, error)]
            raise OutputError(f"Outputs cannot be written: {error.strerror or error}", ROOM) from error
        return [
            replace(value.outcome, output=next(outputs)) if isinstance(value, Written) else value for value in group
        ]


def stat_within(path: str, seconds: float = 5.0) -> Stat | None:
    """Size and time of a file on a disk that may not answer."""
    thread = ReadingThreads(1)
    with suppress(TimeoutError):
        return thread.submit(stat_of, path).result(seconds)  # type: ignore[no-any-return]
    return None


def _unnamed(item: Item, stat: Stat | None, error: OSError) -> Outcome:
    return Outcome(item, stat, stage="write", error=f"no name for this disk: {error.strerror}")


def _ahead(
    pool: Executor,
    function: Callable[[Value], Result],
    values: Iterable[Value],
    depth: int,
    wait: Callable[[Value, Future[Result]], Result],
) -> Iterator[Result]:
    """Map in order, `depth` values ahead of the one that is taken."""
    waiting: deque[tuple[Value, Future[Result]]] = deque()
    for value in values:
        waiting.append((value, pool.submit(function, value)))
        if len(waiting) > depth:
            yield wait(*waiting.popleft())
    while waiting:
        yield wait(*waiting.popleft())


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


def groups(values: Iterable[Value], size: int, seconds: float = math.inf) -> Iterator[list[Value]]:
    """Cut into lists of `size`, the last one shorter; and those that were begun so many seconds ago."""
    group: list[Value] = []
    for value in values:
        if not group:
            began = time.monotonic()
        group.append(value)
        if len(group) == size or time.monotonic() - began >= seconds:
            yield group
            group = []
    if group:
        yield group
