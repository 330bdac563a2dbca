# WebDataset: tar files of samples, each an image with a .npy for each of its arrays and a .json of what it is.
"""Shards that webdataset reads as a stream.

A sample's members follow each other: ``KEY.json``, then ``KEY.level_2.npy`` and so on. A shard appears complete or not
at all, and is replaced as a whole when it grows; no shard has two samples with one key, so that the manifest tells
which of several counts. The same arrays give the same samples.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from featx import files
from featx.errors import OutputError
from featx.runs.formats import Array, Record, Stored
from featx.runs.formats.arrays import bytes_in, vectors_of
from featx.runs.formats.headers import PLAIN, bytes_of_npy, npy_header, read_header
from featx.runs.formats.tar_samples import (
    END,
    NOTHING,
    SHARD,
    UNIT,
    Index,
    copied,
    escaped,
    heads,
    index_of,
    member_of,
    name_of,
)
from featx.runs.manifest import Done
from featx.sharding import WHOLE, Shard
from featx.values import Field


class Sample(NamedTuple):
    """An image that waits to be committed: its key, and its members."""

    key: str
    pieces: list[files.Piece]

    @property
    def bytes(self) -> int:
        """How many bytes it has."""
        return sum(map(len, self.pieces))


class Writer:
    """Gathers samples, and has the last shard grow by them."""

    largest = sys.maxsize
    group = 4096
    seconds = 30.0  # what a killed run may have to do again
    room = 1 << 28

    def __init__(
        self, folder: Path, unfinished: Path, fields: Sequence[Field], shard: Shard = WHOLE, megabytes: int = 500
    ) -> None:
        self._folder, self._unfinished = folder, unfinished
        self._shard, self._most = shard, megabytes * 1_000_000
        self._number, self._keys, self._size = shard.remainder, set[str](), 0
        self._alone = threading.Lock()

    def write(self, record: Record) -> Stored:
        """Only lay out and hash."""
        width, height = record.size
        facts = {"key": record.item.key, "path": record.path, "width": width, "height": height}
        name = escaped(record.item.key)
        pieces = member_of(f"{name}.json", [json.dumps(facts).encode()])
        for field, values in record.arrays.items():
            header, data = npy_header(values.dtype, values.shape), bytes_in(values)
            pieces += member_of(f"{name}.{field}.npy", [header, data])
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
        sample = Sample(record.item.key, pieces)
        return Stored(sample.bytes, digest.hexdigest(), sample)

    def commit(self, group: Sequence[Stored]) -> list[str]:
        """Have the last shard grow to its size, and begin others."""
        outputs: list[str] = []
        with self._alone:
            samples = [stored.content for stored in group]
            while len(outputs) < len(samples):
                added = self._fitting(samples[len(outputs) :])
                if not added:
                    self._number, self._keys, self._size = self._number + self._shard.count, set(), 0
                    continue
                self._append(added)
                outputs += [name_of(self._number)] * len(added)
        return outputs

    def _fitting(self, samples: Sequence[Sample]) -> list[Sample]:
        """Return those that still fit into the shard; into an empty one, at least one."""
        taken: list[Sample] = []
        keys, size = set(self._keys), self._size
        for sample in samples:
            size += sample.bytes
            if sample.key in keys or (keys and size > self._most):
                break
            keys.add(sample.key)
            taken.append(sample)
        return taken

    def _append(self, samples: Sequence[Sample]) -> None:
        path = self._folder / name_of(self._number)
        there = copied(path, [(0, self._size)]) if self._size else iter(())
        self._write(path, chain(there, (piece for sample in samples for piece in sample.pieces)))
        self._keys.update(sample.key for sample in samples)
        self._size += sum(sample.bytes for sample in samples)

    def _write(self, path: Path, pieces: Iterable[files.Piece]) -> None:
        files.write_atomically(path, chain(pieces, [END]), self._unfinished / path.name)

    def abandon(self, kept: Sequence[Stored]) -> None:
        """Nothing is on the disk before it is committed."""

    def collect_garbage(self, done: Mapping[str, str], digests: Callable[[], Mapping[str, str]]) -> None:
        """Remove shards and samples that were committed but not recorded, and those of images that were done again.

        A shard of a run does so with files of its own numbers: others may be about to be recorded.
        """
        needed = set(done.values())
        for path in self._own():
            if path.name not in needed:
                files.remove(path)
                continue
            index = index_of(path)
            if not index.sound:  # its images are being done again; then nothing needs it any more
                continue
            live = [index.range(key) for key in index.numbers if done.get(key) == path.name]
            if len(live) < len(index.numbers):
                self._write(path, copied(path, live))
        spoken_of = [int(match[1]) for match in map(SHARD.fullmatch, needed) if match]  # even if it was lost
        self._continue([number for number in spoken_of if self._shard.has_number(number)])

    def _continue(self, needed: Sequence[int]) -> None:
        """Go on with the last shard, or with a new one if that is full or damaged."""
        last = max(needed, default=-1)
        path = self._folder / name_of(max(last, 0))
        index = index_of(path) if last >= 0 else NOTHING
        following = last + self._shard.count if last >= 0 else self._shard.remainder
        self._number, self._keys, self._size = following, set(), 0
        if index.sound:
            self._number, self._keys, self._size = last, set(index.numbers), int(index.starts[-1])

    def _own(self) -> list[Path]:
        return [path for number, path in files.numbered(self._folder, SHARD) if self._shard.has_number(number)]


class Reader:
    """Looks samples up by their keys, and maps their arrays."""

    def __init__(self, folder: Path, digest: Callable[[str], str]) -> None:
        self._root = os.path.realpath(folder)
        self._indices: dict[str, Index] = {}

    def holds(self, key: str, output: str, size: int) -> bool:
        """Whether there is a sample of it, of that length."""
        index = self._index(output)
        if key not in index.numbers:
            return False
        start, end = index.range(key)
        return end - start == size

    def read(self, key: str, output: str, names: Collection[str] | None = None) -> Mapping[str, Array]:
        """Map the arrays of a sample."""
        start, end = self._index(output).range(key)
        prefix = f"{escaped(key)}."
        arrays: dict[str, Array] = {}
        with files.inside(self._root, output).open("rb") as file:
            for member in heads(file, start, end):
                name = member.name.removeprefix(prefix).removesuffix(".npy")
                if member.name == f"{prefix}{name}.npy" and (names is None or name in names):
                    file.seek(member.data)
                    shape, _, dtype = read_header(file)
                    if dtype.kind not in PLAIN:  # an array of objects would be memory addresses out of the file
                        raise ValueError(f"{member.name} is an array of {dtype}, which are neither numbers nor text")
                    empty = member.size == file.tell() - member.data
                    place = file.tell()
                    arrays[name] = np.empty(shape, dtype) if empty else np.memmap(file, dtype, "r", place, shape)
        return arrays if names is None else {name: arrays[name] for name in names}

    def fault(self, line: Done) -> str:
        """Compare a sample's size and sha256."""
        index = self._index(line.output)
        if line.key not in index.numbers:
            return "missing"
        start, end = index.range(line.key)
        if end - start != line.bytes:
            return f"has {end - start} bytes, not {line.bytes}"
        digest = hashlib.sha256()
        for piece in copied(files.inside(self._root, line.output), [(start, end)]):
            digest.update(piece)
        return "" if digest.hexdigest() == line.sha256 else "sha256 differs"

    def files(self, outputs: Iterable[str]) -> set[str]:
        """The shards themselves."""
        return set(outputs)

    def strays(self, done: Mapping[str, str]) -> dict[str, list[str]]:
        """Look through all shards."""
        found = {}
        for _, path in files.numbered(Path(self._root), SHARD):
            keys = [key for key in self._index(path.name).numbers if done.get(key) != path.name]
            if keys:
                found[path.name] = keys
        return found

    def vectors(self, places: Iterable[tuple[str, str]]) -> Iterator[tuple[list[str], Array]]:
        """Read one vector out of each sample."""
        return vectors_of(self, sorted(places, key=lambda place: place[1]))

    def _index(self, output: str) -> Index:
        if output not in self._indices:
            try:
                self._indices[output] = index_of(files.inside(self._root, output))
            except OutputError:  # a link leads elsewhere
                self._indices[output] = NOTHING
        return self._indices[output]


def bytes_of(fields: Sequence[Field]) -> int:
    """Return the bytes of a sample with these arrays, and a short name and path."""
    size = 2 * UNIT
    for field in fields:
        length = bytes_of_npy(field)
        size += UNIT + length + -length % UNIT
    return size
