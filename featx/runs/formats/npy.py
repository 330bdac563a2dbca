# The .npy of a whole run: one (N, D) array that grows row by row, and its keys, one per line.
"""Vectors as one array.

``embeddings.npy`` is what `numpy.load` maps, and ``keys.txt`` names its rows. Both only grow, and a row counts when the
array's header counts it, which is written last: at any moment the file is an array of whole, committed rows.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from featx import files
from featx.errors import OutputError
from featx.runs.formats import Array, Record, Stored
from featx.runs.formats.headers import npy_header, read_header
from featx.runs.layout import KEYS, VECTORS
from featx.runs.manifest import Done
from featx.values import EMBEDDING, Field

FLOAT32 = np.dtype("<f4")

# Rows that are read, and copied, together.
BLOCK = 16_384

# A key's line ends where it ends; what would end it before is written as the bytes of undecodable names are.
ESCAPES = {"\n": r"\x0a", "\r": r"\x0d"}


class Writer:
    """Appends rows; what is behind the last row that the header counts is overwritten."""

    largest = sys.maxsize
    group = 64
    seconds = 5.0
    room = sys.maxsize

    def __init__(self, folder: Path, unfinished: Path, fields: Sequence[Field]) -> None:
        self._array, self._keys = folder / VECTORS, folder / KEYS
        self._unfinished = unfinished
        (self._length,) = fields[0].lengths
        self._rows = self._keys_end = 0
        self._alone = threading.Lock()

    def write(self, record: Record) -> Stored:
        """Only hash; rows are written in their order."""
        row = np.ascontiguousarray(record.arrays[EMBEDDING], FLOAT32)
        return Stored(row.nbytes, hashlib.sha256(row.data).hexdigest(), (record.item.key, row))

    def commit(self, group: Sequence[Stored]) -> list[str]:
        """Append rows and keys, and count them when they are safe on the disk."""
        with self._alone:
            if group:
                self._begin()
                keys = "".join(_line(stored.content[0]) for stored in group).encode()
                rows = [stored.content[1].data.cast("B") for stored in group]
                files.write_at(self._array, self._end_of(self._rows), rows)
                files.write_at(self._keys, self._keys_end, [keys])
                self._count(self._rows + len(group))
                self._keys_end += len(keys)
            return [VECTORS] * len(group)

    def abandon(self, kept: Sequence[Stored]) -> None:
        """Nothing is on the disk before it is committed."""

    def collect_garbage(self, done: Mapping[str, str], digests: Callable[[], Mapping[str, str]]) -> None:
        """Drop rows that were committed but not recorded, and those of images that were done again since."""
        with self._alone:
            if not done:
                files.remove(self._array)
                files.remove(self._keys)
                self._rows = self._keys_end = 0
                return
            self._begin()
            keys, rows = read_keys(self._keys), _sound_rows(self._array, self._length)
            owners = [key if done.get(key) == VECTORS else "" for key in keys[: len(rows)]]
            if len(keys) < len(rows) or len(set(owners) - {""}) < len(owners) - owners.count(""):
                # Interrupted between the two files, or an image has several rows: what is in a row tells.
                owners = _owners(rows, digests())
            live = [place for place, owner in enumerate(owners) if owner]
            owners = [owners[place] for place in live]
            self._rewrite(rows, keys, live, owners)
            self._keys_end = sum(len(_line(owner).encode()) for owner in owners)
            self._count(len(live))
            files.cut(self._array, self._end_of(len(live)))
            files.cut(self._keys, self._keys_end)

    def _rewrite(self, rows: Array, keys: Sequence[str], live: Sequence[int], owners: Sequence[str]) -> None:
        """Replace the keys, then the array, where need be: fewer keys than rows tell of an interruption in between."""
        if list(owners) != list(keys[: len(owners)]):
            lines = (_line(owner).encode() for owner in owners)
            files.write_atomically(self._keys, lines, self._unfinished / KEYS)
        if live == list(range(len(live))):
            return
        blocks = (rows[list(live[start : start + BLOCK])] for start in range(0, len(live), BLOCK))
        pieces = (np.ascontiguousarray(block).data.cast("B") for block in blocks)
        whole: Iterator[files.Piece] = chain([_header(len(live), self._length)], pieces)
        files.write_atomically(self._array, whole, self._unfinished / VECTORS)

    def _begin(self) -> None:
        """Make an array without rows, if there is none."""
        if not self._array.exists():
            files.write_atomically(self._array, [_header(0, self._length)], self._unfinished / VECTORS)
        if not self._keys.exists():
            files.write_atomically(self._keys, [], self._unfinished / KEYS)

    def _count(self, rows: int) -> None:
        """Write the number of rows into the header; the rows are safe on the disk before it is written."""
        files.synchronise(self._array)
        files.synchronise(self._keys)
        files.write_at(self._array, 0, [_header(rows, self._length)])
        files.synchronise(self._array)
        self._rows = rows

    def _end_of(self, rows: int) -> int:
        return len(_header(rows, self._length)) + rows * self._length * FLOAT32.itemsize


class Reader:
    """Looks rows up by their keys."""

    def __init__(self, folder: Path, digest: Callable[[str], str]) -> None:
        self._root, self._digest = os.path.realpath(folder), digest
        self._rows: Array | None = None
        self._places: dict[str, int] = {}
        self._earlier: dict[str, list[int]] = {}

    def holds(self, key: str, output: str, size: int) -> bool:
        """Whether there is a row of it, of that length."""
        try:
            return self._open().shape[1] * FLOAT32.itemsize == size and key in self._places
        except (OSError, ValueError):
            return False

    def read(self, key: str, output: str, names: Collection[str] | None = None) -> Mapping[str, Array]:
        """Map a row."""
        rows = self._open()
        return {EMBEDDING: rows[self._place(key)]}

    def fault(self, line: Done) -> str:
        """Compare a row's sha256."""
        rows = self._open()
        if line.key not in self._places:
            return "missing"
        row = rows[self._place(line.key)]
        return "" if hashlib.sha256(row.data).hexdigest() == line.sha256 else "sha256 differs"

    def files(self, outputs: Iterable[str]) -> set[str]:
        """Both files."""
        return {VECTORS, KEYS}

    def strays(self, done: Mapping[str, str]) -> dict[str, list[str]]:
        """Look through the keys."""
        try:
            self._open()
        except (OSError, ValueError, OutputError):  # every one of its rows is damaged, which is reported for each
            return {}
        keys = [key for key in self._places if key not in done] + list(self._earlier)
        return {VECTORS: keys} if keys else {}

    def vectors(self, places: Iterable[tuple[str, str]]) -> Iterator[tuple[list[str], Array]]:
        """Map blocks of rows, in the array's order."""
        rows, keys = self._open(), [key for key, _ in places]
        taken = np.array([self._place(key) for key in keys], np.int64)
        order = np.argsort(taken, kind="stable")
        for start in range(0, len(order), BLOCK):
            block = order[start : start + BLOCK]
            first, last = taken[block[0]], taken[block[-1]]
            together = last - first + 1 == len(block)
            yield [keys[place] for place in block], rows[first : last + 1] if together else rows[taken[block]]

    def _open(self) -> Array:
        if self._rows is None:
            rows, keys = (
                _rows(files.inside(self._root, VECTORS)),
                read_keys(files.inside(self._root, KEYS)),
            )
            if len(keys) < len(rows):
                raise ValueError(f"{len(keys)} keys for {len(rows)} rows: a run was interrupted here, run it again")
            places: dict[str, int] = {}
            earlier: dict[str, list[int]] = {}
            for place, key in enumerate(keys[: len(rows)]):
                if key in places:
                    earlier.setdefault(key, []).append(places[key])
                places[key] = place
            self._places, self._earlier, self._rows = places, earlier, rows  # complete, whichever thread comes in
        return self._rows

    def _place(self, key: str) -> int:
        """Return the row of a key; of several, which a killed run leaves, the one that is in the manifest."""
        last = self._places[key]
        for place in self._earlier.get(key, ()):
            if hashlib.sha256(self._open()[place].data).hexdigest() == self._digest(key):
                return place
        return last


def read_keys(path: Path) -> list[str]:
    """Read the names of the rows; a torn last line is left out."""
    try:
        text = path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return []
    lines = text.split("\n")[:-1]
    if "\\x0" in text:
        for character, escape in ESCAPES.items():
            lines = [line.replace(escape, character) for line in lines]
    return lines


def _line(key: str) -> str:
    for character, escape in ESCAPES.items():
        key = key.replace(character, escape)
    return f"{key}\n"


def _rows(path: Path) -> Array:
    """Map the rows that the header counts; of a missing file, none."""
    if not path.exists():
        return np.empty((0, 0), FLOAT32)
    with path.open("rb") as file:
        shape, _, dtype = read_header(file)
        start = file.tell()
        there = (os.fstat(file.fileno()).st_size - start) // max(1, FLOAT32.itemsize * shape[-1])
    if dtype != FLOAT32 or len(shape) != 2:
        raise ValueError(f"{path} holds {dtype} {shape}, not float32 vectors")
    shape = (min(shape[0], there), shape[1])  # a file that was cut off has lost its last ones
    return np.memmap(path, FLOAT32, "r", start, shape) if shape[0] else np.empty(shape, FLOAT32)


def _sound_rows(path: Path, length: int) -> Array:
    """Map the rows; of a file whose header is damaged, none, so that they are done again."""
    try:
        rows = _rows(path)
    except ValueError:
        return np.empty((0, length), FLOAT32)
    return rows if rows.shape[1] == length else np.empty((0, length), FLOAT32)


def _header(rows: int, length: int) -> bytes:
    """Lay out a header, which numpy makes as long for any number of rows."""
    return npy_header(FLOAT32, (rows, length))


def _owners(rows: Array, digests: Mapping[str, str]) -> list[str]:
    """Tell by their sha256 whose rows they are; empty for those of nobody."""
    keys: dict[str, list[str]] = {}
    for key, digest in digests.items():
        keys.setdefault(digest, []).append(key)
    waiting = {digest: iter(names) for digest, names in keys.items()}
    return [next(waiting.get(hashlib.sha256(row.data).hexdigest(), iter(())), "") for row in rows]
