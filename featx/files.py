# Files that appear under their name complete or not at all, and folders that survive a power cut.
"""Writing files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import islice, takewhile
from pathlib import Path

Piece = bytes | memoryview

# Pieces that the system writes at once (IOV_MAX of Linux and macOS).
PIECES = 1024

NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


def write(path: Path, pieces: Iterable[Piece]) -> None:
    """Write a file, one piece after the other; it is not safe on the disk before `settle`."""
    handle = os.open(path, NEW, 0o666)
    try:
        write_all(handle, pieces)
    finally:
        os.close(handle)


def write_at(path: Path, position: int, pieces: Iterable[Piece]) -> None:
    """Write into a file that is there, from a position on; a link is not followed."""
    handle = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.lseek(handle, position, os.SEEK_SET)
        write_all(handle, pieces)
    finally:
        os.close(handle)


def cut(path: Path, length: int) -> None:
    """Take off what is behind a length; nothing is ever added, and a link is not followed."""
    handle = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(handle).st_size > length:
            os.ftruncate(handle, length)
    finally:
        os.close(handle)


def write_all(handle: int, pieces: Iterable[Piece]) -> None:
    """Write pieces to an open file, however many calls it takes."""
    pieces = iter(pieces)
    while left := [memoryview(piece) for piece in islice(pieces, PIECES) if len(piece)]:
        while left:
            count = os.writev(handle, left)
            while left and count >= len(left[0]):
                count -= len(left.pop(0))
            if count:
                left[0] = left[0][count:]


def write_atomically(path: Path, pieces: Iterable[Piece], temporary: Path | None = None) -> None:
    """Write a file under a temporary name, by default beside it, and give it its own when it is safely on the disk."""
    temporary = temporary or temporary_beside(path)
    try:
        write(temporary, pieces)
        settle({temporary: path})
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def temporary_beside(path: Path) -> Path:
    """Return a name under which a file may be written before it gets its own, in the same folder."""
    return path.with_name(f".{os.getpid()}-{path.name}.tmp")


def settle(written: Mapping[Path, Path]) -> None:
    """Give temporary files their names when they, and then the names, are safely on the disk.

    All files are synchronised before the first is renamed, and each folder once: the disk works on them together.
    """
    for temporary in written:
        synchronise(temporary)
    for temporary, path in written.items():
        os.replace(temporary, path)  # noqa: PTH105 - through this module's `os`, as all that can fail
    for folder in {path.parent for path in written.values()}:
        synchronise(folder)


def remove(path: Path) -> None:
    """Remove a file, if it is there."""
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108 - through this module's `os`, as all that can fail


def synchronise(path: Path) -> None:
    """Wait until a file, or the names in a folder, are safely on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folders(folder: Path) -> None:
    """Make a folder, and those above it that are missing, and have their names safely on the disk.

    Without that a power cut could take a new folder, and the files in it, though they were synchronised.
    """
    missing = list(takewhile(lambda place: not place.exists(), (folder, *folder.parents)))
    for place in reversed(missing):
        with suppress(FileExistsError):
            os.mkdir(place)  # noqa: PTH102
        synchronise(place.parent)


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expanded(text: str | Path) -> Path:
    """Return a path with ``~`` written out; one that stands for nobody's home stays as it is."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - a Path would raise


def cache_folder() -> Path | None:
    """Return the user's folder for what can be made again; None where there is no home to have one in."""
    place = expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return None if place.parts[:1] == ("~",) else place / "featx"
