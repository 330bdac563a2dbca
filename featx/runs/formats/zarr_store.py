# The layout of a Zarr store: its metadata, and where the rows of its arrays lie in the files of its shards.
"""A Zarr group of version 3 with an array for each of a run's fields, and one of keys; a row is an image.

All arrays have the same number of rows in a shard, so that the shard with a number holds the same images in each. Rows
are stored one after the other, uncompressed, which makes a shard an array that can be memory-mapped, with Zarr's index
of chunks after it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featx import files
from featx.errors import FeatxError
from featx.runs.formats import Array
from featx.values import Field

try:
    from google_crc32c import value as crc32c
    from numcodecs.vlen import VLenUTF8
except ImportError as error:
    raise FeatxError("The format zarr needs zarr", "Run `pip install 'featx[zarr]'`") from error

# The store in a run's folder, its metadata, and the array of keys.
STORE, METADATA, KEY = "features.zarr", "zarr.json", "key"

# Rows of a shard at most, and bytes of a shard of all arrays together; bytes of a chunk, if it has more than one row.
ROWS, LARGEST, CHUNK = 4096, 1 << 28, 1 << 16

# The index entry of a chunk that is not there, and the bytes of a checksum.
ABSENT, CHECKSUM = (1 << 64) - 1, 4

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
    """Lay out a new store: shards as large as memory can wait for, chunks as small as is quick to read."""
    shapes = {field.key: (field.lengths, np.dtype(field.dtype or "float32")) for field in fields}
    sizes = {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in shapes.items()}
    rows = min(ROWS, _power_of_two(LARGEST // max(1, sum(sizes.values()))))
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
                "index_location": "end",
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

        Raises
        ------
        OSError, ValueError
            If the file is not there, or torn.
        """
        spec, path = self.layout.arrays[name], self.path(name, number)
        whole = self.layout.rows // spec.chunk
        with path.open("rb") as file:
            length = os.fstat(file.fileno()).st_size - len(index_of(0, whole, 0))
            count = length // (spec.chunk * spec.bytes) if spec.bytes else whole
            if length < 0 or count > whole or length != count * spec.chunk * spec.bytes:
                raise ValueError(f"{path} has been torn off")
            file.seek(length)
            if file.read() != index_of(count, whole, spec.chunk * spec.bytes):
                raise ValueError(f"the index of {path} is damaged")
        shape = (count * spec.chunk, *spec.shape)
        return np.memmap(path, spec.dtype, "r", 0, shape) if length else np.empty(shape, spec.dtype)


def keys_of(keys: Sequence[str], rows: int) -> bytes:
    """Lay out the keys of a shard."""
    data = bytes(VLenUTF8().encode(np.array([*keys, *[""] * (rows - len(keys))], object)))
    return data + _checksum(data)


def index_of(count: int, whole: int, size: int) -> bytes:
    """Lay out the index of a shard with so many of all its chunks, which follow each other, and its checksum."""
    index = np.full((whole, 2), ABSENT, "<u8")
    index[:count, 0] = np.arange(count, dtype=np.uint64) * np.uint64(size)
    index[:count, 1] = size
    data = index.tobytes()
    return data + _checksum(data)


def padding_of(spec: Spec, count: int) -> tuple[int, bytes]:
    """Return how many chunks so many rows take, and the bytes that the last one lacks."""
    chunks = -(-count // spec.chunk)
    return chunks, np.full((chunks * spec.chunk - count, *spec.shape), spec.fill, spec.dtype).tobytes()


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
    chunk, *shape = codec["configuration"]["chunk_shape"]
    return Spec(tuple(map(int, shape)), np.dtype(described["data_type"]), int(chunk))
