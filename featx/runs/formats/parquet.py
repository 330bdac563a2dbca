# Parquet: a table of keys, paths, sizes and vectors in shards, each a file with one row group.
"""Vectors as a table: ``key``, ``path``, ``width``, ``height``, ``embedding``.

A shard appears complete or not at all, and only one that holds rows of images that were done again, or that nobody
knows, is ever written again.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featx import files
from featx.errors import FeatxError, OutputError
from featx.runs.formats import Array, Record, Stored
from featx.runs.manifest import Done
from featx.values import EMBEDDING, Field

try:
    import pyarrow as pa
    from pyarrow import parquet
except ImportError as error:
    raise FeatxError("The format parquet needs pyarrow", "Run `pip install 'featx[parquet]'`") from error

FLOAT32 = np.dtype("<f4")

SHARD = re.compile(r"embeddings-(\d{5,})\.parquet")

# Shards that a reader keeps in memory.
OPEN = 3

# Columns beside the vector, and where its numbers are.
FACTS, NUMBERS = ("key", "path", "width", "height"), f"{EMBEDDING}.list.element"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table."""

    key: str
    path: str
    width: int
    height: int
    vector: Array


class Writer:
    """Gathers rows, and writes a shard of them."""

    largest = sys.maxsize
    group = 16_384
    seconds = 30.0  # what a killed run may have to do again

    def __init__(self, folder: Path, unfinished: Path, fields: Sequence[Field]) -> None:
        self._folder, self._unfinished = folder, unfinished
        self._schema = _schema(*fields[0].lengths)
        self._next = 0
        self._alone = threading.Lock()

    def write(self, record: Record) -> Stored:
        """Only hash."""
        vector = np.ascontiguousarray(record.arrays[EMBEDDING], FLOAT32)
        row = Row(record.item.key, record.path, *record.size, vector)
        return Stored(vector.nbytes, hashlib.sha256(vector.data).hexdigest(), row)

    def commit(self, group: Sequence[Stored]) -> list[str]:
        """Write a shard."""
        if not group:
            return []
        with self._alone:
            name = f"embeddings-{self._next:05d}.parquet"
            self._next += 1
        rows: list[Row] = [stored.content for stored in group]
        columns = [pa.array([getattr(row, fact) for row in rows], self._schema.field(fact).type) for fact in FACTS]
        values = pa.array(np.concatenate([row.vector for row in rows]))
        vectors = pa.FixedSizeListArray.from_arrays(values, type=self._schema.field(EMBEDDING).type)
        self._write(name, pa.Table.from_arrays([*columns, vectors], schema=self._schema))
        return [name] * len(group)

    def abandon(self, kept: Sequence[Stored]) -> None:
        """Nothing is on the disk before it is committed."""

    def collect_garbage(self, done: Mapping[str, str], digests: Callable[[], Mapping[str, str]]) -> None:
        """Remove shards that were committed but not recorded, and rows of images that were done again since."""
        needed = set(done.values())
        for name in needed:
            match = SHARD.fullmatch(name)
            self._next = max(self._next, int(match[1]) + 1 if match else 0)  # one that was lost is still spoken of
        for number, path in _shards(self._folder):
            self._next = max(self._next, number + 1)
            if path.name not in needed:
                files.remove(path)
                continue
            try:
                live = [done.get(key) == path.name for key in _keys(path)]
            except (OSError, pa.ArrowException):  # its images are being done again; then nothing needs it any more
                continue
            if not any(live):
                files.remove(path)
            elif not all(live):
                self._shorten(path, live)

    def _shorten(self, path: Path, live: Sequence[bool]) -> None:
        """Take rows out of a shard."""
        try:
            table = parquet.read_table(path, page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            raise OutputError(
                f"{path} is damaged, and rows must be removed from it", "Run `featx verify --repair` on the folder"
            ) from error
        self._write(path.name, table.filter(pa.array(live)))

    def _write(self, name: str, table: Any) -> None:
        """Write a shard through memory, so that it reaches the disk as everything else of a run does."""
        buffer = pa.BufferOutputStream()
        parquet.write_table(
            table,
            buffer,
            row_group_size=len(table),
            compression={fact: "zstd" if fact in ("key", "path") else "none" for fact in (*FACTS, NUMBERS)},
            use_dictionary=False,
            write_page_checksum=True,
        )
        files.write_atomically(self._folder / name, [memoryview(buffer.getvalue())], self._unfinished / name)


class Reader:
    """Looks rows up by their keys; a shard is read when one of its rows is."""

    def __init__(self, folder: Path, digest: Callable[[str], str]) -> None:
        self._root = os.path.realpath(folder)
        self._places: dict[str, dict[str, int]] = {}
        self._open: dict[str, tuple[Any, Array]] = {}

    def holds(self, key: str, output: str, size: int) -> bool:
        """Whether there is a row of it, of that length."""
        places = self._index(output)
        return key in places and places[""] == size

    def read(self, key: str, output: str) -> Mapping[str, Array]:
        """Read a row."""
        return {EMBEDDING: self._shard(output)[1][self._index(output)[key]]}

    def fault(self, line: Done) -> str:
        """Compare a row with the manifest's line."""
        key, output = line.key, line.output
        if key not in self._index(output):
            return "missing"
        place = self._index(output)[key]
        table, vectors = self._shard(output)
        if hashlib.sha256(vectors[place].data).hexdigest() != line.sha256:
            return "sha256 differs"
        facts = {fact: table[fact][place].as_py() for fact in FACTS[1:]}
        recorded = {"path": line.path, "width": line.size[0], "height": line.size[1]}
        return "" if facts == recorded else f"says {facts}, not {recorded}"

    def files(self, outputs: Iterable[str]) -> set[str]:
        """The shards themselves."""
        return set(outputs)

    def strays(self, done: Mapping[str, str]) -> dict[str, list[str]]:
        """Look through all shards."""
        found = {}
        for _, path in _shards(Path(self._root)):
            keys = [key for key in self._index(path.name) if key and done.get(key) != path.name]
            if keys:
                found[path.name] = keys
        return found

    def vectors(self, places: Iterable[tuple[str, str]]) -> Iterator[tuple[list[str], Array]]:
        """Read shard by shard."""
        wanted: dict[str, list[str]] = {}
        for key, output in places:
            wanted.setdefault(output, []).append(key)
        for output, keys in wanted.items():
            index = self._index(output)
            yield keys, self._shard(output)[1][[index[key] for key in keys]]

    def _index(self, output: str) -> dict[str, int]:
        """Rows by key; under the empty key, which no image has, the bytes of a vector."""
        if output not in self._places:
            try:
                path = files.inside(self._root, output)
                size = parquet.read_schema(path).field(EMBEDDING).type.list_size * FLOAT32.itemsize
                self._places[output] = {"": size, **{key: place for place, key in enumerate(_keys(path))}}
            except (OSError, KeyError, AttributeError, OutputError, pa.ArrowException):
                self._places[output] = {"": 0}
        return self._places[output]

    def _shard(self, output: str) -> tuple[Any, Array]:
        """Return a shard's table and its vectors; few are kept open, since a million vectors are gigabytes."""
        shard = self._open.get(output)
        if shard is None:
            try:
                path = files.inside(self._root, output)
                table = parquet.read_table(path, page_checksum_verification=True, memory_map=True)
            except pa.ArrowException as error:
                raise ValueError(str(error)) from error
            column = table[EMBEDDING].combine_chunks()
            shard = table, column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
            self._open = {**dict(list(self._open.items())[1 - OPEN :]), output: shard}
        return shard


def _schema(length: int) -> Any:
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("path", pa.string(), nullable=False),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field(EMBEDDING, pa.list_(pa.float32(), length), nullable=False),
        ]
    )


def _shards(folder: Path) -> list[tuple[int, Path]]:
    found = ((SHARD.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in found if match)


def _keys(path: Path) -> list[str]:
    keys: list[str] = parquet.read_table(path, columns=["key"])["key"].to_pylist()
    return keys
