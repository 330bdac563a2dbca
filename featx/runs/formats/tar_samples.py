# Tar files of samples: how a member is laid out, a key is written, and the samples of a shard are found.
"""The layout of WebDataset shards."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import unquote

import numpy as np

from featx import files
from featx.errors import OutputError
from featx.runs.formats import Array

SHARD = re.compile(r"features-(\d{5,})\.tar")

# A tar's unit, and its end.
UNIT, END = tarfile.BLOCKSIZE, bytes(2 * tarfile.BLOCKSIZE)

# Where the parts of a member's head are that matter here.
SIZE, SUM, TYPE = slice(124, 136), slice(148, 156), slice(156, 157)

# Bytes that are copied together.
PIECE = 1 << 20

# What reading a damaged file raises.
UNSOUND = (OSError, ValueError, OutputError, tarfile.TarError)


class Head(NamedTuple):
    """What the head of a member says: its name, where it and its data start, and the bytes of these."""

    name: str
    start: int
    data: int
    size: int


@dataclass(frozen=True, slots=True)
class Index:
    """The samples of a shard.

    Attributes
    ----------
    numbers : dict of str to int
        Of keys to places in `starts`.
    starts : ndarray
        Where each sample begins, and where the last one ends.
    sound : bool
        Whether the shard is complete.
    """

    numbers: dict[str, int]
    starts: Array
    sound: bool

    def range(self, key: str) -> tuple[int, int]:
        """Return where a sample begins and ends."""
        start, end = self.starts[self.numbers[key] :][:2].tolist()
        return start, end


NOTHING = Index({}, np.zeros(1, np.int64), sound=False)


def escaped(key: str) -> str:
    """Return a key as a sample has it, whose name ends at the first dot after the last slash; see `unescaped`."""
    folder, slash, name = key.replace("%", "%25").rpartition("/")
    return f"{folder}{slash}{name.replace('.', '%2E')}"


def unescaped(name: str) -> str:
    """Return the key of a sample's name."""
    return unquote(name, errors="surrogateescape")


def name_of(number: int) -> str:
    """Return the file of a shard."""
    return f"features-{number:05d}.tar"


def index_of(path: Path) -> Index:
    """Find the samples of a shard that are there in full; of a file that is not one, none."""
    keys: list[str] = []
    starts: list[int] = []
    end, sound = 0, False
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            for member in heads(file, 0, size):
                folder, slash, name = member.name.rpartition("/")
                key = unescaped(f"{folder}{slash}{name.partition('.')[0]}")
                if not keys or key != keys[-1]:
                    keys.append(key)
                    starts.append(member.start)
                end = member.data + member.size + -member.size % UNIT
            file.seek(end)
            sound = file.read() == END
    except UNSOUND:
        pass
    if not sound and keys:  # the last one may not be complete
        end = starts.pop()
        keys.pop()
    return Index({key: number for number, key in enumerate(keys)}, np.array([*starts, end], np.int64), sound)


def copied(path: Path, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """Read parts of a file, piece by piece; neighbouring ones as one."""
    with path.open("rb") as file:
        for start, end in ranges:
            file.seek(start)
            for position in range(start, end, PIECE):
                yield file.read(min(PIECE, end - position))


def member_of(name: str, contents: Sequence[files.Piece]) -> list[files.Piece]:
    """Lay out a member of a tar: a head without time and owner, the contents, and zeros up to a whole unit."""
    info = tarfile.TarInfo(name)
    info.size = sum(map(len, contents))
    head = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    return [head, *contents, bytes(-info.size % UNIT)]


def heads(file: BinaryIO, start: int, end: int) -> Iterator[Head]:
    """Read the heads of a tar's members from one place to another; of a million samples that has to be quick."""
    place = start
    while place < end:
        file.seek(place)
        block = file.read(UNIT)
        if not block.strip(b"\0"):
            return
        if block[TYPE] == tarfile.REGTYPE:
            if int(block[SUM].strip(b"\0 "), 8) != sum(block) - sum(block[SUM]) + sum(b" " * 8):
                raise ValueError(f"the head at {place} is damaged")
            name = block[:100].rstrip(b"\0").decode(errors="surrogateescape")
            head = Head(name, place, place + UNIT, int(block[SIZE].strip(b"\0 "), 8))
        else:  # a name that is long, or not in ASCII, is in a head of its own
            file.seek(place)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                member = tar.next()
            if not member:
                return
            head = Head(member.name, place, member.offset_data, member.size)
        yield head
        place = head.data + head.size + -head.size % UNIT
