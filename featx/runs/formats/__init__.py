# The table of formats, and what one has to do: how a run's arrays lie on the disk.
"""Formats of outputs.

Every format guarantees three things. What it has committed survives a power cut. What it has not committed leaves
nothing that could be taken for an output, or something that `Writer.collect_garbage` removes. And the same arrays give
the same numbers, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from featx.conversions import one_of
from featx.errors import UsageError
from featx.runs.formats import store as remote
from featx.runs.manifest import Done
from featx.runs.mirror import mirror_of
from featx.sharding import Shard
from featx.text import amount_of
from featx.values import Field, Item

Array = np.ndarray[Any, np.dtype[Any]]


class Row(NamedTuple):
    """A format.

    Attributes
    ----------
    module : str
        Where its Reader and Writer are.
    suffix : str
        Of its files.
    vectors_only : bool
        Whether it holds nothing but a vector of each image.
    boxes : bool
        Whether it also holds vectors of each of an image's boxes, where it holds nothing else of it.
    shared : bool
        Whether images share files.
    grows : bool
        Whether files that are there grow, which objects behind a URL cannot.
    numbered : bool
        Whether those files are numbered; a shard writes to those whose numbers belong to it.
    uniform : bool
        Whether each array must have one shape in all images.
    sized : bool
        Whether the size of its files can be chosen.
    at_once : bool
        Whether it is written as a whole, by ``featx convert`` alone.
    bfloat16 : bool
        Whether it has that type, which numpy's own formats lack.
    """

    module: str
    suffix: str
    vectors_only: bool = False
    boxes: bool = False
    shared: bool = False
    grows: bool = False
    numbered: bool = False
    uniform: bool = False
    sized: bool = False
    at_once: bool = False
    bfloat16: bool = False


FORMATS = {
    "npz": Row("featx.runs.formats.npz", ".npz"),
    "safetensors": Row("featx.runs.formats.safetensors", ".safetensors", bfloat16=True),
    "npy": Row("featx.runs.formats.npy", ".npy", vectors_only=True, shared=True, grows=True),
    "parquet": Row("featx.runs.formats.parquet", ".parquet", vectors_only=True, boxes=True, shared=True, numbered=True),
    "webdataset": Row("featx.runs.formats.webdataset", ".tar", shared=True, grows=True, numbered=True, sized=True),
    "zarr": Row("featx.runs.formats.zarr", ".zarr", shared=True, grows=True, numbered=True, uniform=True),
    "hdf5": Row("featx.runs.formats.hdf5", ".h5", shared=True, at_once=True),
}

# Of files that can be outputs; a Zarr store is a folder.
SUFFIXES = {row.suffix for row in FORMATS.values()} - {".zarr"}

# Of files that hold one image each.
OF_ONE_IMAGE = tuple(row.suffix for row in FORMATS.values() if not row.shared)

# What to do about arrays whose shapes differ.
OTHERWISE = "Use --format npz, safetensors or webdataset"


@dataclass(frozen=True, slots=True)
class Record:
    """What is written for one image.

    Attributes
    ----------
    item : Item
        The image.
    path : str
        Its file, as the manifest has it.
    size : tuple of int
        Width and height of the upright original.
    arrays : mapping
        C-contiguous, by the keys of the run's fields.
    """

    item: Item
    path: str
    size: tuple[int, int]
    arrays: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Stored:
    """An image's arrays, stored but not committed yet.

    Attributes
    ----------
    bytes, sha256 : int, str
        Of what the manifest records.
    content : object
        What the format needs to commit it.
    """

    bytes: int
    sha256: str
    content: Any


class Writer(Protocol):
    """Puts outputs into a run's folder.

    Attributes
    ----------
    largest : int
        Bytes that the arrays of one image may have.
    group : int
        Outputs that are committed together, at least.
    seconds : float
        After so long they are committed, however few they are.
    room : int
        Bytes that may wait to be committed.
    """

    largest: int
    group: int
    seconds: float
    room: int

    def write(self, record: Record) -> Stored:
        """Begin with an image; called from several threads. Nothing appears under its own name yet."""
        ...

    def commit(self, group: Sequence[Stored]) -> list[str]:
        """Put outputs in their place, safe on the disk, and return the file of each, relative to the folder."""
        ...

    def abandon(self, kept: Sequence[Stored]) -> None:
        """Remove what was begun and neither committed nor is among these; what is begun later may be left behind."""
        ...

    def collect_garbage(self, done: Mapping[str, str], digests: Callable[[], Mapping[str, str]]) -> None:
        """Remove what is not in the manifest; called before the first `write`, and after the last.

        Parameters
        ----------
        done : mapping
            Of the keys in the manifest to the files that hold their arrays.
        digests : callable
            Gives the sha256 of each of them; takes time.
        """
        ...


class Reader(Protocol):
    """Reads outputs out of a run's folder."""

    def holds(self, key: str, output: str, size: int) -> bool:
        """Whether an image's output is there and has this many bytes."""
        ...

    def read(self, key: str, output: str, names: Collection[str] | None = None) -> Mapping[str, Array]:
        """Return an image's arrays, memory-mapped where that can be.

        Parameters
        ----------
        key, output : str
            The image, and the file that holds its arrays.
        names : collection of str or None
            The arrays that are needed, so that others need not be opened; None means all.

        Raises
        ------
        OSError, KeyError, ValueError, zipfile.BadZipFile
            If they are not there, or damaged.
        """
        ...

    def fault(self, line: Done) -> str:
        """Say what is wrong with the output of a manifest's line; empty if nothing is."""
        ...

    def files(self, outputs: Iterable[str]) -> set[str]:
        """Return all files that belong to these outputs."""
        ...

    def strays(self, done: Mapping[str, str]) -> dict[str, list[str]]:
        """Find rows that are not in a manifest: the keys of each file that has some.

        Parameters
        ----------
        done : mapping
            Of the keys in the manifest to the files that hold their arrays.
        """
        ...

    def vectors(self, places: Iterable[tuple[str, str]]) -> Iterator[tuple[list[str], Array]]:
        """Read the embeddings of (key, output) pairs, block by block: keys and (n, D) values."""
        ...


def require(name: str, fields: Sequence[Field] | None = None) -> None:
    """Refuse an unknown format, or one that cannot hold these arrays, which are written in their types.

    Raises
    ------
    UsageError
        If so.
    FeatxError
        If a library that it needs is not installed.
    """
    one_of(*FORMATS)("--format", name)
    row = FORMATS[name]
    module = import_module(row.module)
    if fields is not None and row.vectors_only and not (_is_vector(fields) or (row.boxes and _are_boxes(fields))):
        given = ", ".join(field.key for field in fields)
        raise UsageError(
            f"{name} stores one vector per image, not {given}", "Use --embedding without other outputs, or --format npz"
        )
    if row.uniform and (varying := next((field.key for field in fields or () if None in field.shape), "")):
        raise UsageError(f"{name} stores arrays of one shape, and {varying} differs from image to image", OTHERWISE)
    for field in fields or ():
        require_type(name, field.dtype)
    size = sum(field.bytes for field in fields or ())
    if size > module.Writer.largest:
        raise UsageError(
            f"The arrays of one image take {amount_of(size)}, but an {name} file holds at most "
            f"{amount_of(module.Writer.largest)}",
            "Use --format safetensors, which has no such limit, or fewer levels (--strides, --out-indices)",
        )


def require_type(name: str, dtype: str) -> None:
    """Refuse a type of arrays that a format lacks.

    Raises
    ------
    UsageError
        If so.
    """
    if dtype == "bfloat16" and not FORMATS[name].bfloat16:
        raise UsageError(f"{name} has no bfloat16", "Use --format safetensors, or another --dtype")


def too_large(size: int, largest: int) -> str:
    """Say that an image's arrays take more than an output may have."""
    return (
        f"its arrays take {amount_of(size)}, but a file holds {amount_of(largest)}; --format safetensors has no such "
        "limit"
    )


def _is_vector(fields: Sequence[Field]) -> bool:
    return len(fields) == 1 and fields[0].is_vector


def _are_boxes(fields: Sequence[Field]) -> bool:
    """Whether there are boxes with vectors, and nothing else."""
    features = {field.shape[2:] for field in fields if len(field.shape) > 2}
    return features == {(1, 1)} and all(field.is_of_boxes for field in fields)


def vectors_only(name: str) -> bool:
    """Whether a format keeps nothing but vectors."""
    return name in FORMATS and FORMATS[name].vectors_only


def shares_files(name: str) -> bool:
    """Whether images share files in a format."""
    return name in FORMATS and FORMATS[name].shared


def takes_shards(name: str) -> bool:
    """Whether several processes can write it at once."""
    return FORMATS[name].numbered or not FORMATS[name].shared


def bytes_of(name: str, fields: Sequence[Field]) -> int:
    """Return the bytes that one image's arrays, of these types, take in a format; names and paths do not count."""
    if vectors_only(name):  # the rest of a row does not count
        return sum(field.bytes for field in fields)
    size: int = import_module(FORMATS[name].module).bytes_of(fields)
    return size


def bytes_held(name: str, size: int, count: int) -> int:
    """Return the most bytes that wait in memory to be committed, of so many images of that size."""
    if not shares_files(name):  # files of their own are on the disk
        return 0
    made = import_module(FORMATS[name].module).Writer
    held: int = min(size * min(count, made.group), made.room)
    return held


def writer(
    name: str,
    folder: Path,
    unfinished: Path,
    fields: Sequence[Field],
    shard: Shard | None = None,
    megabytes: int | None = None,
) -> Writer:
    """Make what writes a run's outputs, or a shard's, to files of a size where that can be chosen.

    `unfinished` is where it may put what is not complete.
    """
    own: dict[str, Any] = {"shard": shard} if shard and FORMATS[name].numbered else {}
    if megabytes and FORMATS[name].sized:
        own["megabytes"] = megabytes
    made: Writer = import_module(FORMATS[name].module).Writer(folder, unfinished, fields, **own)
    mirror = mirror_of(folder)
    return remote.Writer(made, mirror, _shared(name)) if mirror else made


def reader(name: str, folder: Path, digest: Callable[[str], str] = lambda _: "") -> Reader:
    """Make what reads a run's outputs; `digest` gives the sha256 of a key's output, in case several rows have it."""

    def made(place: Path) -> Reader:
        found: Reader = import_module(FORMATS[name].module).Reader(place, digest)
        return found

    mirror = mirror_of(folder)
    return remote.Reader(made, mirror, _shared(name)) if mirror else made(folder)


def _shared(name: str) -> str:
    """Return the suffix of files that images share; empty where each has its own."""
    return FORMATS[name].suffix if FORMATS[name].shared else ""
