# Large arrays: those that lie in a file of their own until they are written, since memory may not hold them.
"""Arrays on the disk, filled from the top and read block by block."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np

# Bytes that are read at a time.
BLOCK = 1 << 24

Array = np.ndarray[Any, np.dtype[Any]]


class Nameless:
    """A file without a name, which goes with what holds it.

    Its pages are not mapped into memory while it is written and read, so that they do not count as the process's.

    Parameters
    ----------
    folder : Path
        Where the file is.
    size : int
        Its bytes.
    """

    def __init__(self, folder: Path, size: int = 0) -> None:
        with tempfile.TemporaryFile(dir=folder) as file:
            self.handle = os.dup(file.fileno())
        finalize(self, os.close, self.handle)
        self.cut(size)

    def cut(self, size: int) -> None:
        """Have it end there."""
        os.truncate(self.handle, size)

    def write(self, values: Array, place: int) -> int:
        """Write numbers at a place, and return where they end.

        Raises
        ------
        OSError
            If the disk is full, or fails.
        """
        data = values.reshape(-1).view(np.uint8).data
        while data:
            count = os.pwrite(self.handle, data, place)
            data, place = data[count:], place + count
        return place

    def read(self, size: int, place: int) -> bytes:
        """Read bytes."""
        return os.pread(self.handle, size, place)


class OnDisk:
    """A (C, H, W) array in a file of its own.

    Parameters
    ----------
    folder : Path
        Where the file is.
    shape : sequence of int
        (C, H, W).
    dtype : dtype
        Of its numbers.
    """

    def __init__(self, folder: Path, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = tuple(shape), dtype
        self.nbytes = math.prod(self.shape) * dtype.itemsize
        self._file = Nameless(folder, self.nbytes)

    def put(self, row: int, values: Array) -> None:
        """Fill rows, (C, rows, W), from one on.

        Raises
        ------
        OSError
            If the disk is full, or fails.
        """
        _, height, width = self.shape
        for channel, rows in enumerate(np.ascontiguousarray(values)):
            self._file.write(rows, (channel * height + row) * width * self.dtype.itemsize)

    @property
    def result(self) -> OnDisk:
        """What is written."""
        return self

    def narrow(self, dtype: np.dtype[Any], made: Callable[[int, Array], Array]) -> None:
        """Replace its numbers by others of a smaller type, in its own file.

        `made` gives those for some numbers of a channel. What is written never reaches what is still to be read.
        """
        channels, height, width = self.shape
        end = 0
        for channel in range(channels):
            first, last = (each * height * width * self.dtype.itemsize for each in (channel, channel + 1))
            for place in range(first, last, BLOCK):
                values = np.frombuffer(bytearray(self._file.read(min(BLOCK, last - place), place)), self.dtype)
                end = self._file.write(made(channel, values), end)
        self._file.cut(end)
        self.dtype, self.nbytes = dtype, end

    def blocks(self) -> Iterator[bytes]:
        """Read its bytes, in C's order."""
        for place in range(0, self.nbytes, BLOCK):
            yield self._file.read(min(BLOCK, self.nbytes - place), place)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """Map it, for those who need an array."""
        with os.fdopen(os.dup(self._file.handle), "rb") as file:
            mapped: Array = np.memmap(file, self.dtype, "r", shape=self.shape)
        return mapped.astype(dtype) if dtype or copy else mapped


class Spilled:
    """A (C, H, W) array at a place in a file that it shares with others."""

    def __init__(self, file: Nameless, place: int, values: Array) -> None:
        self.shape, self.dtype = values.shape, values.dtype
        self._file, self._place = file, place
        self.end = file.write(np.ascontiguousarray(values), place)

    def __getitem__(self, key: tuple[slice, slice]) -> Array:
        """Read some rows of all channels: ``[:, 3:5]``."""
        channels, height, width = self.shape
        first, last, _ = key[1].indices(height)
        rows: Array = np.empty((channels, last - first, width), self.dtype)
        for channel, each in enumerate(rows):
            place = self._place + (channel * height + first) * width * self.dtype.itemsize
            each[:] = np.frombuffer(self._file.read(each.nbytes, place), self.dtype).reshape(each.shape)
        return rows


class InMemory:
    """The same for an array that memory holds."""

    def __init__(self, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = tuple(shape), dtype
        self.values: Array = np.empty(self.shape, dtype)

    def put(self, row: int, values: Array) -> None:
        """Fill rows, (C, rows, W), from one on."""
        self.values[:, row : row + values.shape[1]] = values

    @property
    def result(self) -> Array:
        """The array itself."""
        return self.values

    def narrow(self, dtype: np.dtype[Any], made: Callable[[int, Array], Array]) -> None:
        """Replace its numbers by others of a smaller type; `made` gives those for a channel."""
        narrowed: Array = np.empty(self.values.shape, dtype)
        for channel, values in enumerate(self.values):
            narrowed[channel] = made(channel, values)
        self.values, self.dtype = narrowed, dtype
