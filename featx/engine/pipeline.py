# The pipeline: read, batch, compute, write, commit; overlapped, bounded, and in order.
"""From items to outcomes.

Every stage is a pool of threads that works a bounded number of values ahead of the next stage, and passes them on in
order. Reading, computing and writing all release the GIL, so that every core is busy as long as there is work; memory
does not grow with the number of images. A bad image is a value, not an exception.

Outputs are committed in groups, at most a few seconds after the first of each, and also when the run is cut short: a
slow pass, a signal or a full disk does not lose anything finished before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import chain
from typing import Any

from featx.engine.children import LOOK_EVERY
from featx.engine.computing import Computer
from featx.engine.isolation import Reader, ReadingThreads
from featx.engine.mosaic import Tiles
from featx.engine.resources import Workers
from featx.engine.room import Room
from featx.engine.stages import Stage
from featx.engine.work import Work, Written
from featx.errors import OutputError, StuckError
from featx.images import archives
from featx.runs.formats import Writer
from featx.values import Item, Outcome


def run(
    computers: Sequence[Computer],
    items: Iterable[Item],
    writer: Writer,
    workers: Workers,
    reader: Reader,
    stopped: Callable[[], bool] = lambda: False,
    room: Room | None = None,
    tiles: Tiles | None = None,
) -> Generator[list[Outcome]]:
    """Extract features of every item, and yield the outcomes, group by group.

    A group is yielded as soon as its outputs are in place; all of it can be recorded in the manifest. A batch always
    has its full size, with the last one padded with blanks, so that neither the order nor an interruption can change a
    bit of the result. Outcomes come in the order of the items, unless these have sizes of their own.

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
    room : Room or None
        The memory that images with sizes of their own share; None where all have the model's.
    tiles : Tiles or None
        What runs large images; None where none is cut into tiles.

    Raises
    ------
    StuckError
        If an image hangs. Run again without that one; its thread is lost here.
    OutputError
        If the folder cannot be written: nothing after that image is tried. What was finished before is yielded first.
    """
    work = Work(computers, writer, workers.batch_size, reader, room, tiles)
    with ExitStack() as stack:
        stack.callback(archives.close)

        def stage(pool: Executor, function: Callable[..., Any], values: Iterable[Any], depth: int) -> Stage[Any]:
            """Begin a stage; it ends when the run does, after the stages that follow it."""
            reads = isinstance(pool, ReadingThreads)
            check = work.check if reads else tiles.check if tiles and function == work.compute else None
            made = Stage(pool, function, values, depth, LOOK_EVERY, check)

            def end(kind: type[BaseException] | None, *_: object) -> None:
                """Wait for the threads, unless one may hang, or time is short."""
                may_hang = reads and kind is not None
                made.close()
                pool.shutdown(wait=not may_hang and kind is not StuckError and not stopped(), cancel_futures=True)

            stack.push(end)
            return made

        depth = workers.readers + 2 * workers.batch_size
        prepared = stage(ReadingThreads(workers.readers), work.prepare, items, depth)
        batches = work.batches(prepared, stopped)
        if room:
            stack.callback(room.close)
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
