# The work on one image after the other: read, batch, compute, write, settle; overlapped, bounded, and in order.
"""From items to outcomes.

Every stage is a pool of threads that works a bounded number of values ahead of the next stage, and hands them on in
order. Reading, computing and writing all leave Python's lock, so that every core has something to do as long as there
is work at all; memory does not grow with the number of images. A bad image is a value, not an exception.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from featx.computing import Computer, Maps
from featx.errors import OutputError
from featx.files import remove, settle, temporary_beside
from featx.formats import SUFFIX, pack_npz
from featx.geometry import Frame
from featx.manifest import stat_of
from featx.preprocess import DecodeError
from featx.records import Item, Outcome, Stat, Workers

# Outputs that are synchronised together, at least: the disk works on them side by side.
GROUP = 16

# Values that may wait for a batch to fill, in batches: a run of broken images is not to be held back for a sound one.
PATIENCE = 4

ROOM = "Make room, and run it again to resume"

Value = TypeVar("Value")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Ready:
    """An image that awaits its batch: (H, W, 3) uint8 pixels of the model's input size."""

    item: Item
    stat: Stat
    pixels: Tensor
    frame: Frame


@dataclass(frozen=True, slots=True)
class Computed:
    """An image whose maps wait to be written: its place in the batch."""

    image: Ready
    maps: Maps
    position: int


@dataclass(frozen=True, slots=True)
class Written:
    """An image whose output is complete, but not under its own name."""

    outcome: Outcome
    temporary: Path
    path: Path


def run(computers: Sequence[Computer], items: Iterable[Item], folder: Path, workers: Workers) -> Generator[Outcome]:
    """Extract features of every item into `folder`, and say what became of each, in their order.

    A batch always has its full size, the last one being filled up with blanks, so that neither the order nor an
    interruption can change a bit of the result.

    Parameters
    ----------
    computers : sequence of Computer
        One a device.
    items : iterable of Item
        The images.
    folder : Path
        The run's folder.
    workers : Workers
        Batch size, and how many threads do what.

    Raises
    ------
    OutputError
        If the folder cannot be written: nothing after that image is tried.
    """
    work = Work(computers, folder, workers.batch_size)
    with ExitStack() as stack:
        stack.callback(work.clear)

        def ahead(
            threads: int, function: Callable[[Value], Result], values: Iterable[Value], depth: int
        ) -> Iterator[Result]:
            pool = stack.enter_context(ThreadPoolExecutor(threads))
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)
            return _ahead(pool, function, values, depth)

        prepared = ahead(workers.readers, work.prepare, items, workers.readers + 2 * workers.batch_size)
        computed = ahead(workers.forwards, work.compute, _batches(prepared, workers.batch_size), workers.forwards)
        written = ahead(workers.writers, work.write, chain.from_iterable(computed), workers.batch_size)
        settled = ahead(1, work.settle, groups(written, max(GROUP, workers.batch_size)), 1)
        yield from chain.from_iterable(settled)


class Work:
    """What the threads do, one value at a time.

    Parameters
    ----------
    computers : sequence of Computer
        One a device; batches go to them in turn.
    folder : Path
        The run's folder.
    batch_size : int
        Images in one forward pass.
    """

    def __init__(self, computers: Sequence[Computer], folder: Path, batch_size: int) -> None:
        self._computers = computers
        self._folder = folder
        self._batch_size = batch_size
        self._turn = count()
        self._unsettled: dict[Path, None] = {}  # as an ordered set: dict operations are atomic among threads

    def clear(self) -> None:
        """Remove what was written but not settled; there is nothing unless the run was cut short."""
        remove(list(self._unsettled))

    def prepare(self, item: Item) -> Ready | Outcome:
        """Read, decode and resize an image; whatever is wrong with it becomes its outcome."""
        stat = stat_of(item.path)
        if stat is None or not Path(item.path).is_file():
            return Outcome(item, stat, stage="read", error="no such file" if stat is None else "not a file")
        try:
            image, frame = self._computers[0].pyramid.place(Path(item.path))
        except OSError as error:
            return Outcome(item, stat, stage="read" if error.errno else "decode", error=_reason(error, item))
        except DecodeError as error:
            return Outcome(item, stat, stage="decode", error=str(error))
        except Exception as error:  # noqa: BLE001 - decoders raise whatever the broken file trips them over
            return Outcome(item, stat, stage="decode", error=f"{type(error).__name__}: {_reason(error, item)}")
        return Ready(item, stat, torch.from_numpy(np.array(image)), frame)

    def compute(self, batch: Sequence[Ready | Outcome]) -> list[Computed | Outcome]:
        """Run the network on the images of a batch."""
        images = [image.pixels for image in batch if isinstance(image, Ready)]
        if not images:
            return [outcome for outcome in batch if isinstance(outcome, Outcome)]
        computer = self._computers[next(self._turn) % len(self._computers)]
        maps = computer(computer.stack(images, self._batch_size))
        place = count()
        return [Computed(value, maps, next(place)) if isinstance(value, Ready) else value for value in batch]

    def write(self, value: Computed | Outcome) -> Written | Outcome:
        """Write an image's maps to a temporary file, hashing them on the way."""
        if isinstance(value, Outcome):
            return value
        image, levels = value.image, self._computers[0].pyramid.levels
        for level, finite in zip(levels, value.maps.finite, strict=True):
            if not finite[value.position]:
                return Outcome(image.item, image.stat, stage="forward", error=f"{level.key} holds NaN or infinity")
        maps = zip(levels, value.maps.levels, strict=True)
        pieces = pack_npz({level.key: values[value.position].numpy() for level, values in maps})
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
        path = self._folder / (image.item.key + SUFFIX)
        temporary = temporary_beside(path)
        self._unsettled[temporary] = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.writelines(pieces)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}", ROOM) from error
        outcome = Outcome(
            image.item,
            image.stat,
            size=image.frame.original,
            frame=image.frame.to_json(),
            output=path.relative_to(self._folder).as_posix(),
            bytes=sum(map(len, pieces)),
            sha256=digest.hexdigest(),
        )
        return Written(outcome, temporary, path)

    def settle(self, group: list[Written | Outcome]) -> list[Outcome]:
        """Give outputs their names once they are safely on the disk."""
        try:
            settle({value.temporary: value.path for value in group if isinstance(value, Written)})
        except OSError as error:
            raise OutputError(f"{self._folder} cannot be written: {error.strerror}", ROOM) from error
        for value in group:
            if isinstance(value, Written):
                del self._unsettled[value.temporary]
        return [value.outcome if isinstance(value, Written) else value for value in group]


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[Value], Result], values: Iterable[Value], depth: int
) -> Iterator[Result]:
    """Map in order, `depth` values ahead of the one that is taken."""
    waiting: deque[Future[Result]] = deque()
    for value in values:
        waiting.append(pool.submit(function, value))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _batches(values: Iterable[Ready | Outcome], size: int) -> Iterator[list[Ready | Outcome]]:
    """Group so that each has `size` images, or fewer among many failures, which travel with them."""
    batch: list[Ready | Outcome] = []
    images = 0
    for value in values:
        batch.append(value)
        images += isinstance(value, Ready)
        if images == size or len(batch) == PATIENCE * size:
            yield batch
            batch, images = [], 0
    if batch:
        yield batch


def groups(values: Iterable[Value], size: int) -> Iterator[list[Value]]:
    """Cut into lists of `size`, the last one shorter."""
    group: list[Value] = []
    for value in values:
        group.append(value)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _reason(error: BaseException, item: Item) -> str:
    """One line without the path, which the outcome names already."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    line = text.splitlines()[0].replace(f"'{item.path}'", "").replace(item.path, "").strip(" :.")
    return line or type(error).__name__
