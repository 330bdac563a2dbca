# Isolation: images are read so that none of them can take the run with it, by a crash, a hang or its memory.
"""Reading images that may be hostile.

Images are decoded in this process, by the pipeline's threads. What is being read at any moment is marked in a file that
outlives the process, so that a call after a crash knows its suspects. Suspects, and everything where that is asked for,
are decoded in processes of their own, under limits of time and memory.
"""

from __future__ import annotations

import ctypes
import json
import math
import multiprocessing
import os
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from multiprocessing import connection
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from featx import files
from featx.errors import FeatxError
from featx.images import fitting
from featx.images.frame import Frame
from featx.images.placing import Placed, UnreadableError, place, reason_of
from featx.options import Limits
from featx.runs.suspects import Marks, mark_of
from featx.values import Item

# Seconds that a decoding process has to get ready; it loads torch for timm's transform.
START = 120.0

# Characters of libraries' messages that are kept of one image.
MESSAGES = 500

# Seconds between two looks at an image that is read; many short ones, since time in which the machine slept does not
# count.
LOOK_EVERY = 0.25

# Linux's request to be told of the parent's death (prctl.h).
PR_SET_PDEATHSIG = 1


class Reader:
    """Reads images for the pipeline; called from several threads.

    Parameters
    ----------
    preprocessor : Preprocessor
        What places the pixels.
    limits : Limits
        What an image may take.
    folder : Path
        Where the marks are kept; the run's unfinished folder.
    suspects : collection of bytes
        Images to be read in isolation, as `suspects` gives them.
    isolate : bool
        Whether all are.
    hashed : bool
        Whether the files' sha256 is wanted.
    captured : callable
        How many bytes libraries have written to standard error so far, if that is known. An image during whose reading
        they wrote some is read again in isolation, where what they say is about no other.
    """

    def __init__(
        self,
        preprocessor: fitting.Preprocessor,
        limits: Limits,
        folder: Path,
        suspects: Collection[bytes] = (),
        *,
        isolate: bool = False,
        hashed: bool = False,
        captured: Callable[[], int] = lambda: 0,
    ) -> None:
        self.isolate = isolate
        self._preprocessor, self._limits, self._hashed = preprocessor, limits, hashed
        self._suspects, self._captured = frozenset(suspects), captured
        self._marks = Marks(folder)
        self._clock = 0.0
        self._since: dict[str, tuple[float, Item]] = {}
        self._large_ones = threading.Lock()
        self._own = threading.local()
        self._children: list[Child] = []

    def __call__(self, item: Item) -> Placed:
        """Read an image.

        Raises
        ------
        UnreadableError
            If it cannot be, or not within the limits.
        FeatxError
            If no process can be started to read it in.
        """
        if self.isolate or mark_of(item) in self._suspects:
            return self._apart(item)
        before = self._captured()
        try:
            placed = self._here(item)
        except UnreadableError:
            if self._captured() == before:
                raise
        else:
            if self._captured() == before:
                return placed
        return self._apart(item)

    @contextmanager
    def timed(self, item: Item) -> Iterator[None]:
        """Do something with an image's file in this process that may hang."""
        self._since[item.key] = self._clock, item
        try:
            yield
        finally:
            self._since.pop(item.key, None)

    def waited(self, seconds: float) -> None:
        """Tell how long somebody has waited for an image; time in which the machine slept is not held against any."""
        self._clock += seconds

    def stuck(self) -> Item | None:
        """Return an image that is decoded in this process and takes longer than it may."""
        for since, item in list(self._since.values()):
            if self._clock - since > self._limits.seconds:
                return item
        return None

    def give_up(self) -> None:
        """Forget what is being decoded in this process, and decode nothing here any more."""
        self.isolate = True
        self._since.clear()

    def close(self) -> None:
        """End the processes."""
        for child in self._children:
            child.close()

    def _here(self, item: Item) -> Placed:
        slot = self._marks.enter(item)

        @contextmanager
        def alone() -> Iterator[None]:
            """Wait until no other large image is decoded, which is not held against this one."""
            self._since.pop(item.key, None)
            with self._large_ones:
                if self.isolate:  # another large one hung meanwhile
                    raise UnreadableError("decode", "given up")
                self._since[item.key] = self._clock, item
                yield

        try:
            with self.timed(item):
                return place(self._preprocessor, item.path, self._limits, hashed=self._hashed, alone=alone)
        finally:
            self._marks.leave(slot)

    def _apart(self, item: Item) -> Placed:
        if not hasattr(self._own, "child"):
            self._own.child = Child(self._preprocessor.config, self._limits, hashed=self._hashed)
            self._children.append(self._own.child)
        return self._own.child.read(item.path)  # type: ignore[no-any-return]


class ReadingThreads(Executor):
    """Threads that nobody waits for when the interpreter ends, since one may hang in a decoder."""

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
        """End the threads when they are through; at once with what has not begun, if that is cancelled."""
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
                except BaseException as error:  # noqa: BLE001 - for whoever waits for it
                    future.set_exception(error)


class Child:
    """A process that decodes images one after the other, and is replaced when one of them ends it.

    Parameters
    ----------
    config : dict
        Of the preprocessor.
    limits : Limits
        What an image may take.
    hashed : bool
        Whether the files' sha256 is wanted.
    """

    def __init__(self, config: dict[str, Any], limits: Limits, *, hashed: bool) -> None:
        self._arguments = (config, limits, hashed)
        self._limits = limits
        self._process: Any = None
        self._connection: Any = None

    def read(self, path: str) -> Placed:
        """Have an image read; see `Reader`."""
        if self._process is None:
            self._start()
        try:
            self._connection.send_bytes(os.fsencode(path))
            if not any(self._connection.poll(LOOK_EVERY) for _ in range(math.ceil(self._limits.seconds / LOOK_EVERY))):
                self.close()
                raise UnreadableError("decode", f"took more than {self._limits.seconds:g} s (--time-limit)")
            answer = json.loads(self._connection.recv_bytes())
            if "reason" in answer:
                raise UnreadableError(**answer)
            pixels = np.frombuffer(bytearray(self._connection.recv_bytes()), np.uint8).reshape(answer["shape"])
        except (EOFError, OSError, ValueError) as error:
            raise UnreadableError("decode", self._epitaph()) from error
        return Placed(pixels, Frame.from_json(answer["frame"]), answer["sha256"], answer["messages"])

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.join(1)  # not for ever: a read from a dead network disk cannot be killed
            self._connection.close()

    def _start(self) -> None:
        # Forks of this process could find locks taken; the server that forks has its socket in a temporary folder.
        context: Any = multiprocessing.get_context("forkserver" if files.takes_temporaries() else "spawn")
        context.set_forkserver_preload([__name__])
        self._connection, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, *self._arguments), daemon=True)
        try:
            process.start()
            self._process = process
            theirs.close()
            if self._connection.poll(START) and self._connection.recv_bytes() == b"ready":
                return
        except (EOFError, OSError, RuntimeError) as error:
            reason = str(error) or "it ended at once"
        else:
            reason = "it does not get ready"
        raise FeatxError(
            f"No process can be started to read images in: {reason}",
            "Scripts that call featx need `if __name__ == '__main__':` around it",
        )

    def _epitaph(self) -> str:
        """Say what the process died of; the next image gets another one."""
        process = self._process
        if process is None:
            return "the run ended"
        process.join(1)
        status = process.exitcode
        self.close()
        if status is None or status >= 0:
            return "the decoder gave up"
        name = signal.Signals(-status).name
        return (
            f"the decoder was killed ({name}), perhaps for its memory"
            if name == "SIGKILL"
            else f"the decoder crashed ({name})"
        )


def _serve(pipe: Any, config: dict[str, Any], limits: Limits, hashed: bool) -> None:
    """Read the images that are asked for, in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when it is enough
    _die_with_parent()
    _limit_memory(limits.memory)
    fitting.lift_pillow_limit()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # metadata, of which nothing is used
    preprocessor = fitting.make(config)
    captured = files.nameless()
    if captured:
        os.dup2(captured.fileno(), 2)
    pipe.send_bytes(b"ready")
    with suppress(EOFError):
        while True:
            _answer(pipe, preprocessor, limits, hashed, captured)


def _answer(pipe: Any, preprocessor: fitting.Preprocessor, limits: Limits, hashed: bool, captured: Any) -> None:
    path = os.fsdecode(pipe.recv_bytes())
    answer: dict[str, Any]
    try:
        placed = place(preprocessor, path, limits, hashed=hashed)
        pixels = placed.pixels.tobytes()
        answer = {"shape": placed.pixels.shape, "frame": placed.frame.to_json(), "sha256": placed.sha256}
        answer["messages"] = "; ".join(filter(None, (placed.messages, _take(captured))))[:MESSAGES]
        head = json.dumps(answer)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one image, the next one is read
        failure = error if isinstance(error, UnreadableError) else UnreadableError("decode", reason_of(error, path))
        reason = failure.reason
        if isinstance(failure.__cause__ or error, MemoryError):
            reason = f"takes more than {limits.memory / 1e9:.3g} GB of memory (--memory-limit)"
        answer = {"stage": failure.stage, "reason": reason, "sha256": failure.sha256, "messages": _take(captured)}
        pipe.send_bytes(json.dumps(answer).encode())
        return
    pipe.send_bytes(head.encode())
    pipe.send_bytes(pixels)


def _take(captured: Any) -> str:
    """Read what was written to standard error since last time, as one line, and forget it."""
    if not captured:
        return ""
    captured.seek(0)
    text = captured.read().decode(errors="replace")
    captured.seek(0)
    captured.truncate()
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())[:MESSAGES]


def _limit_memory(most: int) -> None:
    """Bound what this process may still allocate; only Linux counts that."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        resource.setrlimit(resource.RLIMIT_DATA, (pages * resource.getpagesize() + most, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _die_with_parent() -> None:
    """End when the run does, however it ends, and even in the middle of an image that hangs."""
    if sys.platform == "linux":  # the parent is the fork server, which ends with the run
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (connection.wait([parent.sentinel]), os._exit(1)), daemon=True).start()
