# Isolation: images are read so that none of them can bring down the run, by a crash, a hang or its memory use.
"""Reading images that may be hostile.

Images are decoded in this process, by the pipeline's threads. What is being read at any moment is marked in a file that
outlives the process, so that a call after a crash knows its suspects. Suspects, and everything if requested, are
decoded in separate processes, under limits of time and memory (`featx.engine.children`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from featx.engine.children import Child
from featx.errors import UnreadableError
from featx.images.fitting import Native, Preprocessor
from featx.images.placing import Large, Placed, place, place_in_tiles, read_elsewhere
from featx.images.tiles import Tiling
from featx.options import Limits
from featx.runs.suspects import Marks, mark_of
from featx.values import Item


class Reader:
    """Reads images for the pipeline; called from several threads.

    Parameters
    ----------
    preprocessor : Preprocessor
        Fits images to the model's input.
    limits : Limits
        Limits for one image.
    folder : Path
        Where the marks are kept; the run's unfinished folder.
    suspects : collection of bytes
        Images to be read in isolation, as `suspects` gives them.
    isolate : bool
        Whether all are.
    hashed : bool
        Whether the files' sha256 is wanted.
    captured : callable
        How many bytes libraries have written to standard error so far, if known. If they write while an image is being
        read, it is read again in isolation, where whatever they write can only be about that image.
    tiling : Tiling or None
        How large images are cut; of those, only the headers are read here.
    """

    def __init__(
        self,
        preprocessor: Preprocessor,
        limits: Limits,
        folder: Path,
        suspects: Collection[bytes] = (),
        *,
        isolate: bool = False,
        hashed: bool = False,
        captured: Callable[[], int] = lambda: 0,
        tiling: Tiling | None = None,
    ) -> None:
        self.isolate = isolate
        self._tiling = tiling
        self._only_here = tiling is not None and tiling.mpp is not None  # other processes read all pixels of a slide
        self._preprocessor, self._limits, self._hashed = preprocessor, limits, hashed
        self._suspects, self._captured = frozenset(suspects), captured
        self._marks = Marks(folder)
        self._clock = 0.0
        self._since: dict[str, tuple[float, Item]] = {}
        self._large_ones = threading.Lock()
        self._own = threading.local()
        self._children: list[Child] = []

    def __call__(self, item: Item) -> Placed | Large:
        """Read an image.

        Raises
        ------
        UnreadableError
            If it cannot be, or not within the limits.
        FeatxError
            If no process can be started to read it in.
        """
        if self.isolate or mark_of(item) in self._suspects:
            if self._only_here:
                raise UnreadableError(
                    "decode", "it ended or hung an earlier run, and --level-mpp reads in this process"
                )
            return self._apart(item)
        before = self._captured()
        try:
            placed = self._here(item)
        except UnreadableError:
            if self._only_here or self._captured() == before:
                raise
        else:
            if self._only_here or self._captured() == before:
                return placed
        return self._apart(item)

    @contextmanager
    def timed(self, item: Item) -> Iterator[None]:
        """Do something in this process with an image's file that may hang."""
        self._since[item.key] = self._clock, item
        try:
            yield
        finally:
            self._since.pop(item.key, None)

    def waited(self, seconds: float) -> None:
        """Count the time spent waiting for an image; time while the machine sleeps does not count."""
        self._clock += seconds

    def stuck(self) -> Item | None:
        """Return an image that is being decoded in this process and takes longer than allowed."""
        for since, item in list(self._since.values()):
            if self._clock - since > self._limits.time_limit:
                return item
        return None

    def give_up(self) -> None:
        """Abandon what is being decoded in this process, and decode nothing more here."""
        self.isolate = True
        self._since.clear()

    def close(self) -> None:
        """End the processes."""
        for child in self._children:
            child.close()

    def _here(self, item: Item) -> Placed | Large:
        @contextmanager
        def alone() -> Iterator[None]:
            """Wait until no other large image is being decoded; that time does not count against this one."""
            self._since.pop(item.key, None)
            with self._large_ones:
                if self.isolate:  # another large one has hung
                    raise UnreadableError("decode", "given up")
                self._since[item.key] = self._clock, item
                yield

        with self.marked(item), self.timed(item):
            how: dict[str, Any] = {
                "hashed": self._hashed,
                "alone": alone,
                "going_on": partial(self._goes_on, item),
                "known": item.stat,
            }
            if self._tiling and isinstance(self._preprocessor, Native):
                return place_in_tiles(self._preprocessor, self._tiling, item.path, self._limits, **how)
            return place(self._preprocessor, item.path, self._limits, **how)

    @contextmanager
    def marked(self, item: Item) -> Iterator[None]:
        """Mark an image while it, or a part of it, is read in this process."""
        slot = self._marks.enter(item)
        try:
            yield
        finally:
            self._marks.leave(slot)

    def _apart(self, item: Item) -> Placed:
        if not hasattr(self._own, "child"):
            self._own.child = Child(self._preprocessor.config, self._limits, hashed=self._hashed)
            self._children.append(self._own.child)
        with self.timed(item):
            data = read_elsewhere(item.path, self._limits, partial(self._goes_on, item), item.stat)
        return self._own.child.read(item.path, data)  # type: ignore[no-any-return]

    def _goes_on(self, item: Item) -> None:
        """Start counting an image's time again: an archive is being decompressed up to it, which may take long."""
        self._since[item.key] = self._clock, item


class ReadingThreads(Executor):
    """Threads that do not keep the interpreter from ending, since one may hang in a decoder."""

    def __init__(self, threads: int) -> None:
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
        """Have a function called by one of the threads."""
        future: Future[Any] = Future()
        self._queue.put((future, function, arguments, options))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads once their work is done; what has not begun is dropped if futures are cancelled."""
        with suppress(Empty):
            while cancel_futures:
                self._queue.get_nowait()[0].cancel()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads if wait else ():
            thread.join()

    def _work(self) -> None:
        while job := self._queue.get():
            future, function, arguments, options = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(*arguments, **options))
                except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
                    future.set_exception(error)
