# A stage of the pipeline: values mapped by a pool of threads, in order, a bounded number of them ahead.
"""Mapping values in parallel, without holding back those that are ready."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future, wait
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class Stage(Iterator[Result], Generic[Result]):
    """The results of a function for values, in their order.

    A dedicated thread takes the values, so that each result is available as soon as it is made, whatever the next
    values are waiting for. An error, of the function or of the source of the values, is raised at its place in order.

    Parameters
    ----------
    pool : Executor
        Runs the function.
    function : callable
        Called with each value.
    values : iterable
        Taken at most `depth` ahead of the results.
    depth : int
        The most values taken whose results are still pending.
    interval : float
        Seconds between two calls of `check`.
    check : callable or None
        Called repeatedly while someone waits for a result; an exception from it ends the wait.
    """

    def __init__(
        self,
        pool: Executor,
        function: Callable[[Any], Result],
        values: Iterable[Any],
        depth: int,
        interval: float,
        check: Callable[[], None] | None = None,
    ) -> None:
        self._pool, self._function, self._values = pool, function, values
        self._interval, self._check = interval, check
        self._free = threading.Semaphore(depth)
        self._begun: SimpleQueue[Future[Result] | BaseException] = SimpleQueue()
        self._next: Future[Result] | BaseException | None = None
        self._closed = False
        threading.Thread(target=self._feed, daemon=True).start()

    def __next__(self) -> Result:
        while not self.ready(self._interval):
            if self._closed:
                raise CancelledError
            if self._check and isinstance(self._next, Future):
                self._check()
        if isinstance(self._next, BaseException):
            raise self._next
        assert self._next is not None  # noqa: S101 - it is ready
        result = self._next.result()
        self._next = None
        self._free.release()
        return result

    def ready(self, seconds: float) -> bool:
        """Wait until the next result, or the end, is available, but no longer than so many seconds."""
        end = time.monotonic() + seconds
        if self._next is None:
            try:
                self._next = self._begun.get(timeout=seconds)
            except Empty:
                return False
        if isinstance(self._next, Future):
            wait([self._next], max(0.0, end - time.monotonic()))
            return self._next.done()
        return True

    def close(self) -> None:
        """Take no more values, and end all waits for results."""
        self._closed = True
        self._free.release()
        self._begun.put(CancelledError())

    def _feed(self) -> None:
        end: BaseException = StopIteration()
        try:
            for value in self._values:
                self._free.acquire()
                if self._closed:
                    return
                self._begun.put(self._pool.submit(self._function, value))
        except BaseException as error:  # noqa: BLE001 - raised where the results are taken
            end = error
        self._begun.put(end)
