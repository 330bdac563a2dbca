# Faults on demand: the n-th call that can fail for want of a disk fails, or is the last thing that the process does.
from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
import signal
import threading
from itertools import count
from pathlib import Path

import numpy as np

from featx.cli import commands
from featx.engine import stopping
from featx.engine.computing import Computer
from featx.runs import remote
from featx.runs.formats import npy, npz, parquet, webdataset, zarr, zarr_store
from featx.stores import Store
from tests.helpers import wait_until

# What writes, and all that touches the disk, below pathlib and the standard library, which call these by their names.
WRITES = ("open", "writev", "fsync", "replace", "mkdir", "ftruncate", "unlink")
CALLS = (
    *WRITES,
    *("write", "pwrite", "pread", "lseek", "rename", "link", "rmdir", "truncate", "utime"),
    *("stat", "lstat", "fstat", "scandir", "listdir", "readlink"),
)

HONEST = {name: getattr(os, name) for name in CALLS}


class Faults:
    """Counts the calls that touch files below some folders, and strikes the `number`-th of them.

    Attributes
    ----------
    calls : list of str
        What was called.
    """

    def __init__(self, number, kind, counter, only, below, names) -> None:
        self._number, self._kind, self._counter, self._only = number, kind, counter, only
        self._below = tuple(below)
        self._lock = threading.Lock()
        self.calls: list[str] = []
        for name in names:
            setattr(os, name, self._faulty(name, HONEST[name]))
        if names == CALLS:
            opened = self._faulty("file", io.open)
            io.open = builtins.open = lambda *arguments, **options: self._file(opened, *arguments, **options)
            fcntl.flock = self._faulty("flock", fcntl.flock)

    def _file(self, opened, path, mode="r", *arguments, **options):
        """Open a file whose readings can fail, too."""
        file = opened(path, mode, *arguments, **options)
        if mode == "rb" and isinstance(file, io.BufferedReader) and self._concerns(path):
            file.close()
            return io.BufferedReader(self._raw(path))
        return file

    def _raw(self, path):
        faults = self

        class Raw(io.FileIO):
            def readinto(self, buffer):
                return faults._faulty("readinto", super().readinto, path)(buffer)

            def readall(self):
                return faults._faulty("readall", super().readall, path)()

        return Raw(path)

    def _faulty(self, name, honest, about=None):
        def call(*arguments, **options):
            if self._concerns(arguments[0] if about is None and arguments else about):
                self._count(name, honest, arguments)
            return honest(*arguments, **options)

        return call

    def _count(self, name, honest, arguments) -> None:
        if self._only and name != self._only:
            return
        with self._lock:
            self.calls.append(name)
            number = len(self.calls)
            if self._counter:
                handle = HONEST["open"](self._counter, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                HONEST["write"](handle, f"{name} ".encode())  # in one write, which no kill tears
                os.close(handle)
        # A negative number is for every call about an output.
        if number == self._number or (self._number < 0 and str(arguments[-1]).endswith(".npz")):
            self._strike(name, honest, arguments)

    def _concerns(self, about: object) -> bool:
        """Whether a path, or what a descriptor stands for, lies below one of the folders."""
        if isinstance(about, int):
            try:
                about = HONEST["readlink"](f"/proc/self/fd/{about}")
            except OSError:
                return False
        if not isinstance(about, str | bytes | os.PathLike):
            return False
        path = os.path.abspath(os.fsdecode(about))
        return path.startswith(self._below) and path != self._counter

    def _strike(self, name, honest, arguments) -> None:
        if name == "writev":  # half of it gets there
            handle, pieces = arguments
            honest(handle, [memoryview(piece)[: len(piece) // 2] for piece in pieces])
        if self._kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        number = getattr(errno, self._kind)
        raise OSError(number, os.strerror(number))


def inject(name: str, group: int = 0, **options) -> None:
    if group:  # so that few images make several groups
        npy.Writer.group = parquet.Writer.group = webdataset.Writer.group = zarr.Writer.group = group
        zarr_store.ROWS = 2 * group
    {"call": _call, "naive": _naive, "hold": _hold, "store": _store}[name](**options)


def _call(
    number: int,
    kind: str,
    counter: str = "",
    only: str = "",
    below: tuple[str, ...] = (),
    every: bool = False,
) -> None:
    """Strike a call about the run's folder, or those given; of those that write, or of `every` kind."""
    below = below or (os.path.abspath("out"), os.path.abspath("whole"))
    Faults(number, kind, counter, only, below, CALLS if every else WRITES)


def _store(number: int, counter: str = "") -> None:
    """Kill the process at the n-th request that changes a store: half of them before it is sent, half of them after."""

    def changing(honest):
        def call(self, *arguments):
            with alone:
                place = next(requests)
            if counter:
                with open(counter, "a") as file:
                    file.write(f"{honest.__name__} ")
            if place == number and number % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            answer = honest(self, *arguments)
            if place == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return call

    alone, requests = threading.Lock(), count(1)
    remote.SECONDS = -1.0  # every group of lines is uploaded at once
    for name in ("write", "upload", "create", "remove"):
        setattr(Store, name, changing(getattr(Store, name)))


def _naive() -> None:
    """Write as one writes who does not think of kills: under the final name, by numpy."""

    def write(self, record):
        stored = honest_write(self, record)
        temporary, path = stored.content
        with np.load(temporary) as arrays:
            np.savez(path, **arrays)
        temporary.unlink()
        self._begun.discard(temporary)
        return stored

    honest_write = npz.Writer.write
    npz.Writer.write = write


def _hold(after: int = 0, mark: str = "", until: str = "", heard: str = "") -> None:
    """Hold every pass up, from the one on that follows `after` others, which are through when it begins.

    For ever, or until a file is there, or until the run has been ``asked`` to stop. A file, `mark`, appears when a pass
    is held up; and one, `heard`, when the run has heard a signal.
    """

    def call(self, *batch):
        if next(begun) <= after:
            arrays = honest_call(self, *batch)
            if next(ended) == after:
                through.set()
            return arrays
        if after:
            through.wait()
        if mark:
            Path(mark).touch()
        if until:
            wait_until(commands.STOP.asked if until == "asked" else Path(until).exists)
        else:
            threading.Event().wait()
        return honest_call(self, *batch)

    def handle(self, number, frame):
        honest_handle(self, number, frame)
        Path(heard).touch()

    begun, ended, through = count(1), count(1), threading.Event()
    honest_call, honest_handle = Computer.__call__, stopping.Stop._handle
    Computer.__call__ = call
    if heard:
        stopping.Stop._handle = handle
