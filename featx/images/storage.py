# Storage: files on the disk and behind URLs, by the same functions: their size and time, and their bytes.
"""Files wherever they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from featx.errors import UnreadableError
from featx.images import remote
from featx.paths import is_url
from featx.values import Stat

# Bytes that are read at a time.
BLOCK = 1 << 20


def stat_of(path: str) -> Stat:
    """Look up a file's size and time.

    Raises
    ------
    OSError, ValueError, UnreadableError
        If it is not there, or cannot be looked up.
    """
    if is_url(path):
        return remote.stat_of(path)
    status = os.stat(path)  # noqa: PTH116 - a million Path objects cost more than their files
    return Stat(status.st_size, status.st_mtime_ns)


def opened(path: str, stat: Stat) -> BinaryIO:
    """Open a file to be read in any order; errors are those of `stat_of`."""
    return remote.opened(path, stat) if is_url(path) else Path(path).open("rb")


def part(path: str, stat: Stat, start: int, size: int) -> Iterator[bytes]:
    """Read a part of a file, piece by piece; errors are those of `stat_of`."""
    if is_url(path):
        if start + size > stat.bytes:
            raise UnreadableError("read", "the archive ends in the middle of it")
        yield from remote.pieces(path, stat, start, size)
        return
    with Path(path).open("rb") as file:
        file.seek(start)
        while size:
            piece = file.read(min(BLOCK, size))
            if not piece:
                raise UnreadableError("read", "the archive ends in the middle of it")
            yield piece
            size -= len(piece)
