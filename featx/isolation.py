# Isolation: images are read so that none of them can take the run with it, by a crash, a hang or its memory.
"""Reading images that may be hostile.

Images are decoded in this process, by the pipeline's threads. What is being read at any moment is marked in a file that
outlives the process, so that a call after a crash knows its suspects. Suspects, and everything where that is asked for,
are decoded in processes of their own, under limits of time and memory.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import resource
import signal
import struct
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np

from featx import preprocess
from featx.decoding import Placed, UnreadableError, place
from featx.errors import FeatxError, OutputError
from featx.geometry import Frame
from featx.records import Item, Limits

# Seconds that a decoding process has to get ready; it loads torch for timm's transform.
START = 120.0

# Characters of libraries' messages that are kept of one image.
MESSAGES = 500

MARKS, SLOTS, SLOT = "reading", 128, 4096

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
    chatter : callable
        How many bytes libraries have written to standard error so far, if that is known. An image during whose reading
        they wrote some is read again in isolation, where what they say is about no other.
    """

    def __init__(
        self,
        preprocessor: preprocess.Preprocessor,
        limits: Limits,
        folder: Path,
        suspects: Collection[bytes] = (),
        *,
        isolate: bool = False,
        hashed: bool = False,
        chatter: Callable[[], int] = lambda: 0,
    ) -> None:
        self.isolate = isolate
        self._preprocessor, self._limits, self._hashed = preprocessor, limits, hashed
        self._suspects, self._chatter = frozenset(suspects), chatter
        self._marks = _Marks(folder / MARKS)
        self._since: dict[str, float] = {}
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
        if self.isolate or _mark_of(item) in self._suspects:
            return self._apart(item)
        before = self._chatter()
        try:
            placed = self._here(item)
        except UnreadableError:
            if self._chatter() == before:
                raise
        else:
            if self._chatter() == before:
                return placed
        return self._apart(item)

    def is_stuck(self, item: Item) -> bool:
        """Whether an image that is decoded in this process takes longer than it may."""
        since = self._since.get(item.key)
        return since is not None and time.monotonic() - since > self._limits.seconds

    def close(self) -> None:
        """End the processes."""
        for child in self._children:
            child.close()

    def _here(self, item: Item) -> Placed:
        slot = self._marks.enter(item)
        self._since[item.key] = time.monotonic()
        try:
            return place(self._preprocessor, item.path, self._limits, hashed=self._hashed)
        finally:
            del self._since[item.key]
            self._marks.leave(slot)

    def _apart(self, item: Item) -> Placed:
        if not hasattr(self._own, "child"):
            self._own.child = Child(self._preprocessor.config, self._limits, hashed=self._hashed)
            self._children.append(self._own.child)
        return self._own.child.read(item.path)  # type: ignore[no-any-return]


def suspects(folder: Path) -> frozenset[bytes]:
    """Read what a run that ended without warning was reading."""
    try:
        data = (folder / MARKS).read_bytes()
    except OSError:
        return frozenset()
    slots = (data[start : start + SLOT] for start in range(0, len(data) - 1, SLOT))
    return frozenset(slot[2 : 2 + struct.unpack_from("<H", slot)[0]] for slot in slots) - {b""}


class _Marks:
    """What is being read, in a file: what the kernel has taken stays there even if this process is killed."""

    def __init__(self, path: Path) -> None:
        try:
            self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}", "Choose another --output") from error
        # Not before the last thread is done with it: one that hung may write its mark much later.
        weakref.finalize(self, os.close, self._handle)
        self._free = deque(range(SLOTS))

    def enter(self, item: Item) -> int | None:
        try:
            slot = self._free.popleft()
        except IndexError:  # as many images hang
            return None
        mark = _mark_of(item)
        self._put(slot, struct.pack("<H", len(mark)) + mark)
        return slot

    def leave(self, slot: int | None) -> None:
        if slot is not None:
            self._put(slot, bytes(2))
            self._free.append(slot)

    def _put(self, slot: int, data: bytes) -> None:
        with suppress(OSError):  # a full disk will be noticed where it matters
            os.pwrite(self._handle, data, slot * SLOT)


def _mark_of(item: Item) -> bytes:
    return item.key.encode()[: SLOT - 2]


class Child:
    """A process that decodes images one after the other, and is replaced when one of them ends it.

    Parameters
    ----------
    config : dict
        timm's data configuration.
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
            if not self._connection.poll(self._limits.seconds):
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
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")  # forks of this process could find locks taken
        context.set_forkserver_preload([__name__])
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, *self._arguments), daemon=True)
        try:
            self._process.start()
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
        self._process.join(1)
        status = self._process.exitcode
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
    preprocess.lift_pillow_limit()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # metadata, of which nothing is used
    preprocessor = preprocess.Preprocessor(config)
    with tempfile.TemporaryFile() as chatter:
        os.dup2(chatter.fileno(), 2)
        pipe.send_bytes(b"ready")
        with suppress(EOFError):
            while True:
                _answer(pipe, preprocessor, limits, hashed, chatter)


def _answer(pipe: Any, preprocessor: preprocess.Preprocessor, limits: Limits, hashed: bool, chatter: Any) -> None:
    path = os.fsdecode(pipe.recv_bytes())
    try:
        placed = place(preprocessor, path, limits, hashed=hashed)
    except UnreadableError as error:
        reason = error.reason
        if isinstance(error.__cause__, MemoryError):
            reason = f"takes more than {limits.memory / 1e9:.3g} GB of memory (--memory-limit)"
        failure = {"stage": error.stage, "reason": reason, "sha256": error.sha256, "messages": _take(chatter)}
        pipe.send_bytes(json.dumps(failure).encode())
        return
    answer: dict[str, Any] = {
        "shape": placed.pixels.shape,
        "frame": placed.frame.to_json(),
        "sha256": placed.sha256,
        "messages": _take(chatter),
    }
    pipe.send_bytes(json.dumps(answer).encode())
    pipe.send_bytes(placed.pixels.tobytes())


def _take(chatter: Any) -> str:
    """Read what was written to standard error since last time, as one line, and forget it."""
    chatter.seek(0)
    text = chatter.read().decode(errors="replace")
    chatter.seek(0)
    chatter.truncate()
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
