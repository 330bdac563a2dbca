# The layout of a Zarr store: its metadata, and where the rows of its arrays lie in the files of its shards.
"""A Zarr group of version 3 with an array for each of a run's fields, and one of keys; a row is an image.

All arrays have the same number of rows in a shard, so that the shard with a number holds the same images in each. A
shard's file begins with Zarr's index of its chunks, which has one length for any number of rows and follows from it.
The rows come after it, one after the other and uncompressed: they can be memory-mapped, and the file grows in place.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from featx import files
from featx.errors import FeatxError
from featx.runs.formats import Array
from featx.runs.formats.arrays import bytes_in
from featx.values import Field

try:
    from google_crc32c import value as crc32c
    from numcodecs.vlen import VLenUTF8
except ImportError as error:
    raise FeatxError("The format zarr needs zarr", "Run `pip install 'featx[zarr]'`") from error

# The store in a run's folder, its metadata, and the array of keys.
STORE, METADATA, KEY = "features.zarr", "zarr.json", "key"

# Rows of a shard at most, and their bytes in its largest file, which stays under 4 GiB with its index; bytes of a
# chunk, if it has more than one row.
ROWS, LARGEST, CHUNK = 4096, (1 << 32) - (1 << 17), 1 << 16

# Where the index is in a file, the bytes of an entry, an entry's numbers for a chunk that is not there, the bytes of a
# checksum, and what the place of the first row is a multiple of.
INDEX, ENTRY, ABSENT, CHECKSUM, ALIGNMENT = "start", 16, (1 << 64) - 1, 4, 64

SHARD = re.compile(r"c\.(\d{1,18})(\.0)*")

# Names of dimensions, by how many a row has.
AXES = {1: ("channel",), 2: ("token", "channel"), 3: ("channel", "y", "x")}


@dataclass(frozen=True, slots=True)
class Spec:
    """The rows of an array: their shape and type, and how many make a chunk."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk: int

    @property
    def bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def fill(self) -> float:
        """The value of numbers that are not there."""
        return math.nan if self.dtype.kind == "f" else 0

    def start(self, rows: int) -> int:
        """Place of the first row in the file of a shard that can have so many."""
        index = rows // self.chunk * ENTRY + CHECKSUM
        return index + -index % ALIGNMENT


@dataclass(frozen=True, slots=True)
class Layout:
    """The arrays of a store, by their names, without that of keys, and the rows of a shard."""

    rows: int
    arrays: dict[str, Spec]

    @property
    def bytes(self) -> int:
        """Bytes of an image."""
        return sum(spec.bytes for spec in self.arrays.values())


def layout_of(fields: Sequence[Field]) -> Layout:
    """Lay out a new store: shards so large that their files are few, chunks as small as is quick to read."""
    shapes = {field.key: (field.lengths, np.dtype(field.dtype or "float32")) for field in fields}
    sizes = {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in shapes.items()}
    rows = min(ROWS, _power_of_two(LARGEST // max(1, *sizes.values())))
    chunks = {name: min(rows, _power_of_two(CHUNK // max(1, size))) for name, size in sizes.items()}
    return Layout(rows, {name: Spec(*shape, chunks[name]) for name, shape in shapes.items()})


def metadata_of(layout: Layout, rows: int) -> dict[str, bytes]:
    """Return the metadata of a store with so many rows: documents by their folders; the group's, with all, is last."""
    arrays = {KEY: _described(KEY, (), "string", rows, layout.rows, "", [{"name": "vlen-utf8"}, {"name": "crc32c"}])}
    for name, spec in layout.arrays.items():
        codec = {
            "name": "sharding_indexed",
            "configuration": {
                "chunk_shape": [spec.chunk, *spec.shape],
                "codecs": [_numbers()],
                "index_codecs": [_numbers(), {"name": "crc32c"}],
                "index_location": INDEX,
            },
        }
        fill = "NaN" if spec.dtype.kind == "f" else 0
        arrays[name] = _described(name, spec.shape, spec.dtype.name, rows, layout.rows, fill, [codec])
    group = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"coordinates": KEY},
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": arrays},
    }
    return {name: json.dumps(each, indent=1).encode() for name, each in {**arrays, "": group}.items()}


def read_layout(path: Path) -> tuple[Layout, int]:
    """Read the layout of a store, and the number of its rows, out of the group's metadata.

    Raises
    ------
    OSError, ValueError
        If they are not there, or not featx's.
    FeatxError
        If an older featx wrote it, so that its rows lie elsewhere in the files; they must be neither read nor touched.
    """
    try:
        described = json.loads(path.read_bytes())["consolidated_metadata"]["metadata"]
        key = described.pop(KEY)
        rows, count = int(key["chunk_grid"]["configuration"]["chunk_shape"][0]), int(key["shape"][0])
        arrays = {name: _spec(each) for name, each in described.items()}
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} does not describe a store of featx") from error
    if not all(_is_plain(each) and rows % each.chunk == 0 for each in arrays.values()) or rows < 1:
        raise ValueError(f"{path} does not describe a store of featx")
    return Layout(rows, arrays), count


class Store:
    """The files of a store's shards; out of the run's folder neither a name nor a link leads."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self._root, self.layout = os.path.realpath(folder), layout

    @staticmethod
    def path_of_metadata(folder: Path) -> Path:
        """Return the file of a store's metadata in a run's folder."""
        return files.inside(os.path.realpath(folder), f"{STORE}/{METADATA}")

    def folder(self, name: str) -> Path:
        """Return the folder of an array, of the group itself by an empty name."""
        return files.inside(self._root, f"{STORE}/{name}".rstrip("/"))

    def path(self, name: str, number: int) -> Path:
        """Return the file of an array's shard."""
        axes = 0 if name == KEY else len(self.layout.arrays[name].shape)
        return files.inside(self._root, f"{STORE}/{name}/c.{number}{'.0' * axes}")

    def numbers(self, name: str = KEY) -> list[int]:
        """Return the numbers of the shards of which an array has a file."""
        try:
            found = [SHARD.fullmatch(each) for each in os.listdir(self.folder(name))]  # noqa: PTH208
        except FileNotFoundError:
            return []
        return sorted(int(match[1]) for match in found if match)

    def keys(self, number: int) -> list[str]:
        """Read the keys of a shard's rows; empty for rows that hold nothing.

        Raises
        ------
        OSError, ValueError
            If the file is not there, or damaged.
        """
        path = self.path(KEY, number)
        data = path.read_bytes()
        if _checksum(data[:-CHECKSUM]) != data[-CHECKSUM:]:
            raise ValueError(f"{path} is damaged")
        keys: list[str] = VLenUTF8().decode(data[:-CHECKSUM]).tolist()
        while keys and not keys[-1]:
            keys.pop()
        return keys

    def rows(self, name: str, number: int) -> Array:
        """Map the rows of a shard, (n, ...); a file may have more of them than there are keys.

        Zarr's index is not asked: it follows from the keys, and may be half-written while the shard grows.

        Raises
        ------
        OSError, ValueError
            If the file is not there, or torn.
        """
        spec, path = self.layout.arrays[name], self.path(name, number)
        start = spec.start(self.layout.rows)
        length = path.stat().st_size - start
        if length < 0:
            raise ValueError(f"{path} has been torn off")
        count = length // (spec.chunk * spec.bytes) * spec.chunk if spec.bytes else self.layout.rows
        shape = (min(count, self.layout.rows), *spec.shape)
        return np.memmap(path, spec.dtype, "r", start, shape) if math.prod(shape) else np.empty(shape, spec.dtype)

    def put(self, number: int, rows: Mapping[int, Mapping[str, Array]], unfinished: Path) -> None:
        """Write rows into a shard's files, by their places, and have them safe on the disk; all others stay."""
        whole = self.layout.rows
        for name, spec in self.layout.arrays.items():
            path = self.path(name, number)
            if not path.exists():
                files.make_folders(self.folder(name))
                files.write_atomically(path, [head_of(spec, whole, 0)], unfinished / f"{name}-{number}")
            for _, consecutive in groupby(enumerate(sorted(rows)), lambda pair: pair[1] - pair[0]):
                places = [place for _, place in consecutive]
                position = spec.start(whole) + places[0] * spec.bytes
                files.write_at(path, position, (bytes_in(rows[place][name]) for place in places))
        for name in self.layout.arrays:
            files.synchronise(self.path(name, number))

    def settle(self, number: int, count: int) -> None:
        """Have a shard's files hold so many rows, which are there: nothing but padding after them, and their index."""
        found = [(spec, self.path(name, number)) for name, spec in self.layout.arrays.items()]
        settled = [path for spec, path in found if path.exists() and _settle(path, spec, self.layout.rows, count)]
        for path in settled:
            files.synchronise(path)


def keys_of(keys: Sequence[str], rows: int) -> bytes:
    """Lay out the keys of a shard."""
    data = bytes(VLenUTF8().encode(np.array([*keys, *[""] * (rows - len(keys))], object)))
    return data + _checksum(data)


def head_of(spec: Spec, whole: int, count: int) -> bytes:
    """Lay out what precedes the rows in a shard's file, if it has so many of all: the index, and its checksum."""
    chunks, size, start = -(-count // spec.chunk), spec.chunk * spec.bytes, spec.start(whole)
    index = np.full((whole // spec.chunk, 2), ABSENT, "<u8")
    index[:chunks, 0] = start + np.arange(chunks) * size
    index[:chunks, 1] = size
    data = index.tobytes()
    return (data + _checksum(data)).ljust(start, b"\0")


def _settle(path: Path, spec: Spec, whole: int, count: int) -> bool:
    """Repair index, padding and length of a file with so many rows; True if bytes were written."""
    head, padding = head_of(spec, whole, count), np.full((-count % spec.chunk, *spec.shape), spec.fill, spec.dtype)
    end = len(head) + count * spec.bytes
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size < end:
            return False
        index = file.read(len(head))
        file.seek(end)
        behind = file.read(padding.nbytes + 1)
    if len(behind) > padding.nbytes:
        files.cut(path, end + padding.nbytes)
    if behind[: padding.nbytes] != padding.tobytes():
        files.write_at(path, end, [padding.tobytes()])
    if index != head:
        files.write_at(path, 0, [head])
    return behind != padding.tobytes() or index != head


def _checksum(data: bytes) -> bytes:
    checksum: int = crc32c(data)
    return checksum.to_bytes(CHECKSUM, "little")


def _power_of_two(most: int) -> int:
    """Return the largest power of two that is not greater, at least 1."""
    return 1 << max(0, most.bit_length() - 1)


def _numbers() -> dict[str, Any]:
    return {"name": "bytes", "configuration": {"endian": "little"}}


def _described(
    name: str, shape: tuple[int, ...], dtype: str, rows: int, shard: int, fill: object, codecs: Iterable[dict[str, Any]]
) -> dict[str, Any]:
    axes = AXES.get(len(shape)) or [f"axis_{number}" for number in range(len(shape))]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [rows, *shape],
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard, *shape]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": fill,
        "codecs": list(codecs),
        "attributes": {},
        "dimension_names": ["image", *(f"{name}_{axis}" for axis in axes[: len(shape)])],
        "storage_transformers": [],
    }


def _is_plain(spec: Spec) -> bool:
    """Whether an array is one of numbers; one of objects would be memory addresses out of the file."""
    return spec.dtype.kind in "iuf" and spec.chunk > 0 and all(length >= 0 for length in spec.shape)


def _spec(described: dict[str, Any]) -> Spec:
    (codec,) = described["codecs"]
    if codec["configuration"]["index_location"] != INDEX:
        raise FeatxError(
            f"An older featx wrote this {STORE}, and this one can neither read nor extend it",
            "Read it with zarr or xarray, extract into another folder, or replace it with --overwrite",
        )
    chunk, *shape = codec["configuration"]["chunk_shape"]
    return Spec(tuple(map(int, shape)), np.dtype(described["data_type"]), int(chunk))
