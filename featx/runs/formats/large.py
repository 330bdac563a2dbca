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


class OnDisk:
    """A (C, H, W) array in a file without a name, which goes with it.

    Its pages are not mapped into memory while it is written and read, so that they do not count as the process's.

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
        with tempfile.TemporaryFile(dir=folder) as file:
            self._handle = os.dup(file.fileno())
        finalize(self, os.close, self._handle)
        os.truncate(self._handle, self.nbytes)

    def put(self, row: int, values: Array) -> None:
        """Fill rows, (C, rows, W), from one on.

        Raises
        ------
        OSError
            If the disk is full, or fails.
        """
        _, height, width = self.shape
        for channel, rows in enumerate(np.ascontiguousarray(values)):
            self._write(rows, (channel * height + row) * width * self.dtype.itemsize)

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
                values = np.frombuffer(bytearray(os.pread(self._handle, min(BLOCK, last - place), place)), self.dtype)
                end = self._write(made(channel, values), end)
        os.truncate(self._handle, end)
        self.dtype, self.nbytes = dtype, end

    def _write(self, values: Array, place: int) -> int:
        """Write numbers at a place, and return where they end."""
        data = values.reshape(-1).view(np.uint8).data
        while data:
            count = os.pwrite(self._handle, data, place)
            data, place = data[count:], place + count
        return place

    def blocks(self) -> Iterator[bytes]:
        """Read its bytes, in C's order."""
        for place in range(0, self.nbytes, BLOCK):
            yield os.pread(self._handle, min(BLOCK, self.nbytes - place), place)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """Map it, for those who need an array."""
        with os.fdopen(os.dup(self._handle), "rb") as file:
            mapped: Array = np.memmap(file, self.dtype, "r", shape=self.shape)
        return mapped.astype(dtype) if dtype or copy else mapped


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
