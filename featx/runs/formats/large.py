# Large arrays: those that lie in a file of their own until they are written, since memory may not hold them.
"""Arrays on the disk, filled from the top and read block by block."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
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
            data = memoryview(rows.reshape(-1).view(np.uint8))
            place = (channel * height + row) * width * self.dtype.itemsize
            while data:
                count = os.pwrite(self._handle, data, place)
                data, place = data[count:], place + count

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
        self.values: Array = np.empty(shape, dtype)

    def put(self, row: int, values: Array) -> None:
        """Fill rows, (C, rows, W), from one on."""
        self.values[:, row : row + values.shape[1]] = values
