# The .npz of one image: what numpy.load reads, every array aligned in the file so that it can be memory-mapped.
"""Writing and reading feature files."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import reduce
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from featx import files
from featx.runs.formats import Array, apart
from featx.runs.formats.apart import in_blocks
from featx.runs.formats.arrays import bytes_in
from featx.runs.formats.headers import PLAIN, bytes_of_npy, npy_header, read_header
from featx.runs.formats.large import OnDisk
from featx.values import Field

# Arrays start at multiples of this many bytes: a cache line, and what numpy's own .npy headers are padded to.
ALIGNMENT = 64

# The extra field that Android's zipalign pads with; readers skip it.
PADDING_ID = 0xD935

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


class Writer(apart.Writer):
    """One .npz per image."""

    suffix = ".npz"
    largest = LARGEST - (1 << 20)  # with room for the headers

    @staticmethod
    def pack(arrays: Mapping[str, Array | OnDisk]) -> list[bytes | memoryview | OnDisk]:
        """Lay out a file."""
        return pack_npz(arrays)


class Reader(apart.Reader):
    """Files read one by one."""

    def __init__(self, folder: Path, digest: Callable[[str], str]) -> None:
        super().__init__(folder, digest)
        self._places: dict[int, dict[str, _Place]] = {}

    def read(self, key: str, output: str, names: Collection[str] | None = None) -> Mapping[str, Array]:
        """Map the arrays of a file; those with names mostly without reading its directory.

        The files of photos of one size are laid out alike, which the headers of an array tell.
        """
        path = files.inside(self.root, output)
        if names is None:
            return read_npz(path)
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            places = self._places.get(size, {})
            if not all(name in places and places[name].is_in(file) for name in names):
                places = self._places[size] = _places(path, names)
            return {name: places[name].map(file) for name in names}


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
            npy_header(values.dtype, values.shape),
            values if isinstance(values, OnDisk) else bytes_in(values),
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


def bytes_of(fields: Sequence[Field]) -> int:
    """Return the bytes of a file with these arrays; see `pack_npz`."""
    position = directory = 0
    for field in fields:
        name = len(f"{field.key}.npy")
        local = LOCAL_HEADER + name
        padding = len(_padding(position + local))
        directory += DIRECTORY_HEADER + name + padding
        position += local + padding + bytes_of_npy(field)
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
