# The .npz of one image: what numpy.load reads, every array aligned in the file so that it can be memory-mapped.
"""Writing and reading feature files."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import reduce
from io import BufferedReader, FileIO
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from featx import files
from featx.dtypes import LETTERS
from featx.runs.formats import Array, Record, Stored, read_header
from featx.runs.formats.large import OnDisk
from featx.runs.layout import output_of
from featx.runs.manifest import Done
from featx.values import EMBEDDING, Field

# Vectors that are read together.
BLOCK = 1024

# Names of temporary files: unlike each other in the whole process.
TEMPORARIES = count()

# Arrays start at multiples of this many bytes: a cache line, and what numpy's own .npy headers are padded to.
ALIGNMENT = 64

# The extra field that Android's zipalign pads with; readers skip it.
PADDING_ID = 0xD935

# Kinds of numpy's types that are read: signed, unsigned, floating, Unicode.
PLAIN = "iufU"

# Fixed parts of a member's local header, and of the header of an extra field (PKWARE APPNOTE 4.3.7, 4.5.1).
LOCAL_HEADER, EXTRA_HEADER = 30, 4

# Where the checksum of an array is in its local header.
CHECKSUM = 14

# The fixed part of a directory entry, and the whole record that ends a file (APPNOTE 4.3.12, 4.3.16).
DIRECTORY_HEADER, END = 46, 22

# Midnight and 1 January 1980 as zip has them; the same pixels and recipe are to give the same bytes.
NO_TIME = (0, (1 << 5) | 1)

# Where the 32 bits of zip's positions end.
LARGEST = (1 << 32) - 1


class Writer:
    """One file per image: written under a temporary name, and renamed once it is safely on disk."""

    largest = LARGEST - (1 << 20)  # with room for the headers
    group = 16  # the disk works on them side by side
    seconds = 2.0
    room = sys.maxsize

    def __init__(self, folder: Path, unfinished: Path, fields: Sequence[Field]) -> None:
        del fields
        self._folder, self._unfinished = folder, unfinished
        self._root = os.path.realpath(folder)
        self._folders: set[Path] = set()
        self._begun: set[Path] = set()

    def write(self, record: Record) -> Stored:
        """Write the file, hashing it on the way."""
        pieces = pack_npz(record.arrays)
        digest, size = hashlib.sha256(), 0
        for piece in in_blocks(pieces):
            digest.update(piece)
            size += len(piece)
        output = record.item.alias or output_of(record.item.key)
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
        """Nothing to do: temporary files are removed with everything unfinished."""


class Reader:
    """Files read one by one."""

    def __init__(self, folder: Path, digest: Callable[[str], str]) -> None:
        self._prefix, self._root = f"{folder}/", os.path.realpath(folder)
        self._places: dict[int, dict[str, _Place]] = {}

    def holds(self, key: str, output: str, size: int) -> bool:
        """Whether the file is there, in full."""
        try:
            return os.lstat(self._prefix + output).st_size == size  # a million Path objects take long
        except OSError:
            return False

    def read(self, key: str, output: str, names: Collection[str] | None = None) -> Mapping[str, Array]:
        """Map the arrays of a file; those with names mostly without reading its directory.

        The files of photos of one size are laid out alike, which the headers of an array tell.
        """
        path = files.inside(self._root, output)
        if names is None:
            return read_npz(path)
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            places = self._places.get(size, {})
            if not all(name in places and places[name].is_in(file) for name in names):
                places = self._places[size] = _places(path, names)
            return {name: places[name].map(file) for name in names}

    def fault(self, line: Done) -> str:
        """Compare size and sha256."""
        path = files.inside(self._root, line.output)
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
        places = iter(places)
        while block := list(islice(places, BLOCK)):
            yield [key for key, _ in block], np.stack([self._vector(output) for _, output in block])

    def _vector(self, output: str) -> Array:
        return np.array(read_npz(files.inside(self._root, output), [EMBEDDING])[EMBEDDING])


def pack_npz(arrays: Mapping[str, Array | OnDisk]) -> list[bytes | memoryview | OnDisk]:
    """Lay out a file of arrays, uncompressed, in the order given; the arrays themselves are not copied.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        C-contiguous; any shape, numbers or text; names in ASCII.

    Returns
    -------
    list of bytes, memoryview or OnDisk
        What to write, one after the other; see `in_blocks`.

    Raises
    ------
    ValueError
        If the file would pass 4 GiB, from which on zip files are laid out in another way.
    """
    pieces: list[bytes | memoryview | OnDisk] = []
    directory: list[bytes] = []
    position = 0
    for name, values in arrays.items():
        header, data, filename = (
            _npy_header(values.dtype, values.shape),
            values if isinstance(values, OnDisk) else values.reshape(-1).view(np.uint8).data,
            f"{name}.npy".encode("ascii"),
        )
        padding = _padding(position + LOCAL_HEADER + len(filename))
        size = len(header) + values.nbytes
        if position + size >= LARGEST:
            raise ValueError(f"{position + size} bytes are more than an npz file can hold")
        # Version 2.0, no flags, stored, no time, checksum, size twice: the part that both headers share.
        checksum = reduce(lambda before, block: zlib.crc32(block, before), in_blocks([header, data]), 0)
        common = struct.pack("<5H3L", 20, 0, 0, *NO_TIME, checksum, size, size)
        lengths = struct.pack("<2H", len(filename), len(padding))
        start = b"PK\3\4" + common + lengths + filename + padding + header
        pieces += [start, data]
        made_by = struct.pack("<2B", 20, 3)  # Unix, whose rights are in the upper half of the attributes
        attributes = struct.pack("<3H2L", 0, 0, 0, 0o600 << 16, position)
        directory.append(b"PK\1\2" + made_by + common + lengths + attributes + filename + padding)
        position += len(start) + values.nbytes
    ending = b"".join(directory)
    count = len(directory)
    return [*pieces, ending + b"PK\5\6" + struct.pack("<4H2LH", 0, 0, count, count, len(ending), position, 0)]


def in_blocks(pieces: Iterable[bytes | memoryview | OnDisk]) -> Iterator[bytes | memoryview]:
    """Yield what `pack_npz` lays out; arrays on the disk are read on the way."""
    for piece in pieces:
        if isinstance(piece, OnDisk):
            yield from piece.blocks()
        else:
            yield piece


def bytes_of(fields: Sequence[Field]) -> int:
    """Return the bytes of a file with these arrays; see `pack_npz`."""
    position = directory = 0
    for field in fields:
        name = len(f"{field.key}.npy")
        local = LOCAL_HEADER + name
        padding = len(_padding(position + local))
        dtype = np.dtype(f"U{LETTERS}" if field.dtype == "text" else field.dtype)
        directory += DIRECTORY_HEADER + name + padding
        position += local + padding + len(_npy_header(dtype, field.lengths)) + field.bytes
    return position + directory + END


def read_npz(path: Path, names: Collection[str] | None = None) -> dict[str, Array]:
    """Open the arrays of a file, or some of them; memory-mapped read-only, so nothing is read until it is used.

    Raises
    ------
    OSError, zipfile.BadZipFile, ValueError
        If it is not such a file.
    """
    with path.open("rb") as file:
        return {name: place.map(file) for name, place in _places(path, names).items()}


def _npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, facts)
    return header.getvalue()


def _padding(end_of_header: int) -> bytes:
    """Build an extra field that makes what follows the local header start at a multiple of `ALIGNMENT`."""
    length = -(end_of_header + EXTRA_HEADER) % ALIGNMENT
    return struct.pack("<HH", PADDING_ID, length) + bytes(length)


class _Place(NamedTuple):
    """Where an array lies in a file.

    Attributes
    ----------
    begin : int
        The position of zip's header and numpy's, which the numbers follow.
    headers : bytes
        Both, but for the checksum.
    dtype, shape, order
        Of the array.
    """

    begin: int
    headers: bytes
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"]

    def is_in(self, file: FileIO) -> bool:
        """Whether a file of the same size has such an array there."""
        return _without_checksum(os.pread(file.fileno(), len(self.headers), self.begin)) == self.headers

    def map(self, file: FileIO | BufferedReader) -> Array:
        """Map it, read-only."""
        return np.memmap(file, self.dtype, "r", self.begin + len(self.headers), self.shape, self.order)


def _places(path: Path, names: Collection[str] | None) -> dict[str, _Place]:
    """Find the arrays of a file, or some of them, by its directory."""
    with zipfile.ZipFile(path) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        return {name: _place(path, archive, members[name]) for name in (members if names is None else names)}


def _place(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> _Place:
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{path} was compressed by another program; read it with numpy.load")
    with archive.open(member) as data:
        shape, fortran, dtype = read_header(data)  # type: ignore[arg-type]  # it reads and tells, which is all
        header = data.tell()
    if dtype.kind not in PLAIN:  # an array of objects would be memory addresses out of the file
        raise ValueError(f"{path} holds an array of {dtype}, which are neither numbers nor text")
    with path.open("rb") as file:
        file.seek(member.header_offset)
        local = file.read(LOCAL_HEADER)
        name, extra = struct.unpack("<HH", local[26:])
        headers = _without_checksum(local + file.read(name + extra + header))
    return _Place(member.header_offset, headers, dtype, shape, "F" if fortran else "C")


def _without_checksum(headers: bytes) -> bytes:
    return headers[:CHECKSUM] + bytes(4) + headers[CHECKSUM + 4 :]
