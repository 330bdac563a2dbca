# Parquet: a table of keys, paths, sizes and vectors in shards, each a file with one row group.
"""Vectors as a table.

A row is an image, with ``key``, ``path``, ``width``, ``height`` and ``embedding``; or a box of an image, with ``x1``,
``y1``, ``x2``, ``y2``, ``id``, ``label``, ``seen`` and a vector of each level instead of the embedding. The boxes of an
image follow each other.

A shard appears complete or not at all, and only one that holds rows of images that were done again, or that nobody
knows, is ever written again.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featx import files
from featx.errors import FeatxError, OutputError
from featx.runs.formats import Array, Record, Stored
from featx.runs.formats.arrays import digest_of
from featx.runs.formats.columns import BESIDE, EDGES, FLOAT32, SUFFIX, arrays_of, columns_of, encoding_of
from featx.runs.manifest import Done
from featx.sharding import WHOLE, Shard
from featx.values import BOXES, EMBEDDING, Field

try:
    import pyarrow as pa
    from pyarrow import parquet
except ImportError as error:
    raise FeatxError("The format parquet needs pyarrow", "Run `pip install 'featx[parquet]'`") from error

# What pyarrow raises about a file that is not as it was written: text in its schema may be no UTF-8 any more.
DAMAGED = (OSError, KeyError, ValueError, pa.ArrowException)

# The columns that describe the image of a row, and the types of the columns beside the vectors.
FACTS = {"key": pa.string(), "path": pa.string(), "width": pa.int32(), "height": pa.int32()}
TYPES = {"float64": pa.float64(), "float32": pa.float32(), "text": pa.string()}

SHARD = re.compile(r"embeddings-(\d{5,})\.parquet")

# Shards that a reader keeps in memory.
OPEN = 3

# The sha256 of an image without rows.
NOTHING = digest_of({})


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one image: its facts, the same in all rows, and (n,) or (n, C) values of every other column."""

    facts: tuple[str, str, int, int]
    columns: dict[str, Array]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(next(iter(self.columns.values())))


@dataclass(frozen=True, slots=True)
class Index:
    """The rows of a shard, image by image.

    Attributes
    ----------
    size : int
        Bytes of a row's vectors; 0 for a shard that cannot be read.
    numbers : dict of str to int
        Of keys to places in `starts`.
    starts : ndarray
        First row of each image, and the number of all rows.
    """

    size: int
    numbers: dict[str, int]
    starts: Array

    def rows(self, key: str) -> tuple[int, int]:
        """Return where the rows of an image begin, and how many there are."""
        if key not in self.numbers:
            return 0, 0
        first, end = self.starts[self.numbers[key] :][:2].tolist()
        return first, end - first


class Writer:
    """Gathers rows, and writes a shard of them."""

    largest = sys.maxsize
    group = 16_384
    seconds = 30.0  # what a killed run may have to do again
    room = 1 << 28

    def __init__(self, folder: Path, unfinished: Path, fields: Sequence[Field], shard: Shard = WHOLE) -> None:
        self._folder, self._unfinished = folder, unfinished
        self._schema = _schema(fields)
        self._shard, self._next = shard, shard.remainder
        self._alone = threading.Lock()

    def write(self, record: Record) -> Stored:
        """Only hash."""
        columns = columns_of(record.arrays)
        size = sum(values.nbytes for values in columns.values() if values.ndim == 2)
        return Stored(size, digest_of(columns), Rows((record.item.key, record.path, *record.size), columns))

    def commit(self, group: Sequence[Stored]) -> list[str]:
        """Write a shard."""
        if not group:
            return []
        with self._alone:
            name = f"embeddings-{self._next:05d}.parquet"
            self._next += self._shard.count
        images: list[Rows] = [stored.content for stored in group]
        facts = [rows.facts for rows in images for _ in range(rows.count)]
        columns = [pa.array([each[place] for each in facts], kind) for place, kind in enumerate(FACTS.values())]
        others = list(self._schema)[len(FACTS) :]
        values = (np.concatenate([rows.columns[field.name] for rows in images]) for field in others)
        columns += [_to_arrow(each, field.type) for each, field in zip(values, others, strict=True)]
        self._write(name, pa.Table.from_arrays(columns, schema=self._schema))
        return [name] * len(group)

    def abandon(self, kept: Sequence[Stored]) -> None:
        """Nothing is on the disk before it is committed."""

    def collect_garbage(self, done: Mapping[str, str], digests: Callable[[], Mapping[str, str]]) -> None:
        """Remove files that were committed but not recorded, and rows of images that were done again since.

        A shard of a run does so with files of its own numbers: others may be about to be recorded.
        """
        needed = set(done.values())
        there = files.numbered(self._folder, SHARD)
        spoken_of = (SHARD.fullmatch(name) for name in needed)  # even if it was lost
        last = max([-1, *(number for number, _ in there), *(int(match[1]) for match in spoken_of if match)])
        self._next = last + 1 + (self._shard.remainder - last - 1) % self._shard.count
        for number, path in there:
            if not self._shard.has_number(number):
                continue
            if path.name not in needed:
                files.remove(path)
                continue
            try:
                live = [done.get(key) == path.name for key in _keys(path)]
            except DAMAGED:  # its images are being done again; then nothing needs it any more
                continue
            if not all(live):
                self._shorten(path, live)

    def _shorten(self, path: Path, live: Sequence[bool]) -> None:
        """Take rows out of a shard."""
        try:
            table = parquet.read_table(path, page_checksum_verification=True)
        except DAMAGED as error:
            raise OutputError(
                f"{path} is damaged, and rows must be removed from it", "Run `featx verify --repair` on the folder"
            ) from error
        self._write(path.name, table.filter(pa.array(live)))

    def _write(self, name: str, table: Any) -> None:
        """Write a shard through memory, so that it reaches the disk as everything else of a run does."""
        buffer = pa.BufferOutputStream()
        texts = [field.name for field in table.schema if field.type == pa.string()]
        vectors = [field.name for field in table.schema if pa.types.is_nested(field.type)]
        encoding = encoding_of(table.column_names, texts, vectors)
        parquet.write_table(table, buffer, row_group_size=max(1, len(table)), **encoding)
        files.write_atomically(self._folder / name, [memoryview(buffer.getvalue())], self._unfinished / name)


class Reader:
    """Looks rows up by their keys; a shard is read when one of its rows is."""

    def __init__(self, folder: Path, digest: Callable[[str], str]) -> None:
        self._root, self._digest = os.path.realpath(folder), digest
        self._indices: dict[str, Index] = {}
        self._open: dict[str, dict[str, Any]] = {}

    def holds(self, key: str, output: str, size: int) -> bool:
        """Whether there are rows of it, of that length."""
        index = self._index(output)
        return index.size > 0 and index.rows(key)[1] * index.size == size

    def read(self, key: str, output: str, names: Collection[str] | None = None) -> Mapping[str, Array]:
        """Read an image's rows."""
        first, count = self._index(output).rows(key)
        if not count and self._digest(key) != NOTHING:
            raise KeyError(key)
        return arrays_of(self._columns(output, first, count))

    def fault(self, line: Done) -> str:
        """Compare rows with the manifest's line."""
        key, output = line.key, line.output
        index = self._index(output)
        first, count = index.rows(key)
        if not index.size or (not count and line.sha256 != NOTHING):
            return "missing"
        if digest_of(self._columns(output, first, count)) != line.sha256:
            return "sha256 differs"
        shard = self._shard(output)
        recorded = {"path": line.path, "width": line.size[0], "height": line.size[1]}
        for place in range(first, first + count):
            facts = {fact: shard[fact][place].as_py() for fact in recorded}
            if facts != recorded:
                return f"says {facts}, not {recorded}"
        return ""

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
        """Read shard by shard."""
        wanted: dict[str, list[str]] = {}
        for key, output in places:
            wanted.setdefault(output, []).append(key)
        for output, keys in wanted.items():
            index, vectors = self._index(output), self._shard(output)[EMBEDDING]
            yield keys, vectors[index.starts[[index.numbers[key] for key in keys]]]

    def _index(self, output: str) -> Index:
        if output not in self._indices:
            try:
                path = files.inside(self._root, output)
                kinds = parquet.read_schema(path).types
                lengths = [kind.list_size for kind in kinds if pa.types.is_fixed_size_list(kind)]
                self._indices[output] = _index_of(_keys(path), sum(lengths) * FLOAT32.itemsize)
            except (OutputError, *DAMAGED):
                self._indices[output] = _index_of([], 0)
        return self._indices[output]

    def _columns(self, output: str, first: int, count: int) -> dict[str, Array]:
        """Return the columns of some rows, without the facts of their image."""
        columns = {name: values for name, values in self._shard(output).items() if name not in FACTS}
        return {
            name: values[first : first + count]
            if isinstance(values, np.ndarray)
            else _to_numpy(values.slice(first, count))
            for name, values in columns.items()
        }

    def _shard(self, output: str) -> dict[str, Any]:
        """Return a shard's columns, vectors as (N, C) arrays; few stay open, since a million vectors are gigabytes."""
        shard = self._open.get(output)
        if shard is None:
            try:
                path = files.inside(self._root, output)
                table = parquet.read_table(path, page_checksum_verification=True, memory_map=True)
            except pa.ArrowException as error:
                raise ValueError(str(error)) from error
            pieces = {name: table[name].combine_chunks() for name in table.column_names}
            shard = {
                name: _to_numpy(piece) if pa.types.is_nested(piece.type) else piece for name, piece in pieces.items()
            }
            self._open = {**dict(list(self._open.items())[1 - OPEN :]), output: shard}
        return shard


def _index_of(keys: Sequence[str], size: int) -> Index:
    starts = [place for place, key in enumerate(keys) if not place or key != keys[place - 1]]
    return Index(size, {keys[start]: number for number, start in enumerate(starts)}, np.array([*starts, len(keys)]))


def _schema(fields: Sequence[Field]) -> Any:
    """Return the schema of a table with these arrays: an embedding, or what belongs to boxes."""
    columns = dict(FACTS)
    for field in fields:
        if field.key == BOXES:
            columns |= dict.fromkeys(EDGES, TYPES[field.dtype])
        elif field.key in BESIDE:
            columns[BESIDE[field.key]] = TYPES[field.dtype]
        else:
            length = field.lengths[0 if field.is_vector else 1]
            columns[field.key.removesuffix(SUFFIX)] = pa.list_(pa.float32(), length)
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


def _to_arrow(values: Array, kind: Any) -> Any:
    """Make a column of (n,) or (n, C) values."""
    if values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), type=kind)
    return pa.array(values.tolist() if values.dtype.kind == "U" else values, kind)


def _to_numpy(column: Any) -> Array:
    """Make (n,) or (n, C) values of a column, which is in one piece."""
    if pa.types.is_fixed_size_list(column.type):
        values: Array = column.flatten().to_numpy(zero_copy_only=False)
        return values.reshape(len(column), column.type.list_size)
    return np.array(column.to_pylist(), np.str_) if column.type == pa.string() else np.asarray(column.to_numpy())


def _keys(path: Path) -> list[str]:
    keys: list[str] = parquet.read_table(path, columns=["key"])["key"].to_pylist()
    return keys
