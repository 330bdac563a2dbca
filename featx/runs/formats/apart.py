# A file for each image: what the formats that have one share.
"""Files that are written side by side under temporary names, and renamed once they are safely on the disk."""

from __future__ import annotations

import hashlib
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import ClassVar

from featx import files
from featx.runs.formats import Array, Record, Stored
from featx.runs.formats.arrays import vectors_of
from featx.runs.formats.large import OnDisk
from featx.runs.layout import output_of
from featx.runs.manifest import Done
from featx.values import Field

# Names of temporary files, unique in the whole process.
TEMPORARIES = count()


class Writer(ABC):
    """One file per image: written under a temporary name, and renamed once it is safely on disk."""

    suffix: ClassVar[str]
    largest = sys.maxsize
    group = 16  # the disk works on them side by side
    seconds = 2.0
    room = sys.maxsize

    def __init__(self, folder: Path, unfinished: Path, fields: Sequence[Field]) -> None:
        del fields
        self._folder, self._unfinished = folder, unfinished
        self._root = os.path.realpath(folder)
        self._folders: set[Path] = set()
        self._begun: set[Path] = set()

    @staticmethod
    @abstractmethod
    def pack(arrays: Mapping[str, Array | OnDisk]) -> Sequence[files.Piece | OnDisk]:
        """Lay out a file: what to write, one after the other; see `in_blocks`."""

    def write(self, record: Record) -> Stored:
        """Write the file, hashing it on the way."""
        pieces = self.pack(record.arrays)
        digest, size = hashlib.sha256(), 0
        for piece in in_blocks(pieces):
            digest.update(piece)
            size += len(piece)
        output = record.item.alias or output_of(record.item.key, self.suffix)
        temporary = self._unfinished / f"{next(TEMPORARIES)}"
        path = self._folder / output
        if path.parent not in self._folders:
            if path.parent != self._folder:
                files.inside(self._root, os.path.dirname(output))  # noqa: PTH120
            files.make_folders(path.parent)
            self._folders.add(path.parent)
        self._begun.add(temporary)
        try:
            files.write(temporary, in_blocks(pieces))
        except OSError:
            self._remove(temporary)  # half a file, whose room those that are finished may need
            raise
        return Stored(size, digest.hexdigest(), (temporary, path))

    def commit(self, group: Sequence[Stored]) -> list[str]:
        """Rename the files; those that have been already are left alone."""
        places = [stored.content for stored in group]
        waiting = {temporary: path for temporary, path in places if temporary in self._begun}
        try:
            files.commit(waiting)
        finally:
            self._begun -= {temporary for temporary, _ in places} - waiting.keys()
        return [path.relative_to(self._folder).as_posix() for _, path in places]

    def abandon(self, kept: Sequence[Stored]) -> None:
        """Remove temporary files."""
        for temporary in self._begun.copy() - {stored.content[0] for stored in kept}:
            self._remove(temporary)

    def _remove(self, temporary: Path) -> None:
        with suppress(OSError):  # the earlier failure is reported; the file goes with everything unfinished
            temporary.unlink()
        self._begun.discard(temporary)

    def collect_garbage(self, done: Mapping[str, str], digests: Callable[[], Mapping[str, str]]) -> None:
        """Leave temporary files to be removed with everything unfinished."""
        del done, digests


class Reader(ABC):
    """Files read one by one."""

    def __init__(self, folder: Path, digest: Callable[[str], str]) -> None:
        self._prefix, self.root = f"{folder}/", os.path.realpath(folder)

    def holds(self, key: str, output: str, size: int) -> bool:
        """Whether the file is there, in full."""
        try:
            return os.lstat(self._prefix + output).st_size == size  # a million Path objects take long
        except OSError:
            return False

    @abstractmethod
    def read(self, key: str, output: str, names: Collection[str] | None = None) -> Mapping[str, Array]:
        """Map the arrays of a file."""

    def fault(self, line: Done) -> str:
        """Compare size and sha256."""
        path = files.inside(self.root, line.output)
        if not path.is_file():
            return "missing"
        if path.stat().st_size != line.bytes:
            return f"has {path.stat().st_size} bytes, not {line.bytes}"
        return "" if files.sha256_of(path) == line.sha256 else "sha256 differs"

    def files(self, outputs: Iterable[str]) -> set[str]:
        """The outputs themselves."""
        return set(outputs)

    def strays(self, done: Mapping[str, str]) -> dict[str, list[str]]:
        """Every image has a file of its own."""
        return {}

    def vectors(self, places: Iterable[tuple[str, str]]) -> Iterator[tuple[list[str], Array]]:
        """Read one vector out of each file."""
        return vectors_of(self, places)


def in_blocks(pieces: Iterable[files.Piece | OnDisk]) -> Iterator[files.Piece]:
    """Yield what is laid out; arrays on the disk are read on the way."""
    for piece in pieces:
        if isinstance(piece, OnDisk):
            yield from piece.blocks()
        else:
            yield piece
