# Faults on demand: the n-th call that can fail for want of a disk fails, or is the last thing that the process does.
from __future__ import annotations

import errno
import os
import signal
import threading
from itertools import count
from pathlib import Path

import numpy as np

from featx import files, manifest, suspects
from featx.formats import npy, npz, parquet

CALLS = ("open", "writev", "fsync", "replace", "mkdir", "ftruncate", "unlink")


class FaultyOs:
    """`os`, of which the `number`-th call that touches the disk does not come to its end; counts them all."""

    def __init__(self, number: int, kind: str, counter: str, only: str) -> None:
        self._number, self._kind, self._counter, self._only = number, kind, counter, only
        self.calls: list[str] = []
        self._lock = threading.Lock()

    def __getattr__(self, name: str):
        honest = getattr(os, name)
        if name not in CALLS or (self._only and name != self._only):
            return honest

        def call(*arguments, **options):
            with self._lock:
                self.calls.append(name)
                number = len(self.calls)
                if self._counter:
                    with Path(self._counter).open("a") as file:  # in one write, which no kill tears
                        file.write(f"{name} ")
            # A negative number is for every call about an output.
            if number == self._number or (self._number < 0 and str(arguments[-1]).endswith(".npz")):
                self._strike(name, honest, arguments)
            return honest(*arguments, **options)

        return call

    def _strike(self, name, honest, arguments) -> None:
        if name == "writev":  # half of it gets there
            handle, pieces = arguments
            honest(handle, [memoryview(piece)[: len(piece) // 2] for piece in pieces])
        if self._kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        number = getattr(errno, self._kind)
        raise OSError(number, os.strerror(number))


def inject(name: str, **options) -> None:
    {"call": _call, "naive": _naive, "slow": _slow}[name](**options)


def _call(number: int, kind: str, counter: str = "", only: str = "", group: int = 0) -> None:
    if group:  # so that few images make several settlements
        npy.Writer.group = parquet.Writer.group = group
    faulty = FaultyOs(number, kind, counter, only)
    for module in (files, manifest, suspects):
        module.os = faulty


def _naive() -> None:
    """Write as one writes who does not think of kills: under the final name, by numpy."""

    def write(self, record):
        stored = honest_write(self, record)
        temporary, path = stored.content
        with np.load(temporary) as arrays:
            np.savez(path, **arrays)
        temporary.unlink()
        return stored

    honest_write = npz.Writer.write
    npz.Writer.write = write


def _slow(seconds: float, after: int = 0, mark: str = "") -> None:
    """Make every pass take its time, from the one on that follows `after` others; they are through when it begins.

    A file, `mark`, appears when it does.
    """
    import time

    from featx.computing import Computer

    def call(self, pixels):
        if next(begun) <= after:
            arrays = honest(self, pixels)
            if next(ended) == after:
                through.set()
            return arrays
        if after:
            through.wait()
        if mark:
            Path(mark).touch()
        time.sleep(seconds)
        return honest(self, pixels)

    begun, ended, through = count(1), count(1), threading.Event()
    honest = Computer.__call__
    Computer.__call__ = call
