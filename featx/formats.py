# The .npz of one image: what numpy.load reads, every array aligned in the file so that it can be memory-mapped.
"""Writing and reading feature files."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

# Arrays start at multiples of this many bytes: a cache line, and what numpy's own .npy headers are padded to.
ALIGNMENT = 64

# The extra field that Android's zipalign pads with; readers skip it.
PADDING_ID = 0xD935

# Kinds of numpy's types that are read: signed, unsigned, floating.
NUMBERS = "iuf"

# Fixed parts of a member's local header, and of the header of an extra field (PKWARE APPNOTE 4.3.7, 4.5.1).
LOCAL_HEADER, EXTRA_HEADER = 30, 4

# Midnight and 1 January 1980 as zip has them; the same pixels and recipe are to give the same bytes.
NO_TIME = (0, (1 << 5) | 1)

# Where the 32 bits of zip's positions end.
LARGEST = (1 << 32) - 1


def pack_npz(arrays: Mapping[str, Array]) -> list[bytes | memoryview]:
    """Lay out a file of arrays, uncompressed, in the order given; the arrays themselves are not copied.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        C-contiguous; any shape and numeric type; names in ASCII.

    Returns
    -------
    list of bytes or memoryview
        What to write, one after the other.

    Raises
    ------
    ValueError
        If the file would pass 4 GiB, from which on zip files are laid out in another way.
    """
    pieces: list[bytes | memoryview] = []
    directory: list[bytes] = []
    position = 0
    for name, values in arrays.items():
        header, data, filename = (
            _npy_header(values),
            values.reshape(-1).view(np.uint8).data,
            f"{name}.npy".encode("ascii"),
        )
        padding = _padding(position + LOCAL_HEADER + len(filename))
        size = len(header) + len(data)
        # Version 2.0, no flags, stored, no time, checksum, size twice: the part that both headers share.
        common = struct.pack("<5H3L", 20, 0, 0, *NO_TIME, zlib.crc32(data, zlib.crc32(header)), size, size)
        lengths = struct.pack("<2H", len(filename), len(padding))
        pieces += [b"PK\3\4" + common + lengths + filename + padding + header, data]
        made_by = struct.pack("<2B", 20, 3)  # Unix, whose rights are in the upper half of the attributes
        attributes = struct.pack("<3H2L", 0, 0, 0, 0o600 << 16, position)
        directory.append(b"PK\1\2" + made_by + common + lengths + attributes + filename + padding)
        position += len(pieces[-2]) + len(data)
    if position >= LARGEST:
        raise ValueError(f"{position} bytes are more than a file of features can hold")
    ending = b"".join(directory)
    count = len(directory)
    return [*pieces, ending + b"PK\5\6" + struct.pack("<4H2LH", 0, 0, count, count, len(ending), position, 0)]


def read_npz(path: Path) -> dict[str, Array]:
    """Open the arrays of a file; they are memory-mapped read-only, so nothing is read until it is used.

    Raises
    ------
    OSError, zipfile.BadZipFile, ValueError
        If it is no such file.
    """
    with zipfile.ZipFile(path) as archive:
        return {
            member.filename.removesuffix(".npy"): _map_member(path, archive, member) for member in archive.infolist()
        }


def _npy_header(values: Array) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(values))
    return header.getvalue()


def _padding(end_of_header: int) -> bytes:
    """Build an extra field that makes what follows the local header start at a multiple of `ALIGNMENT`."""
    length = -(end_of_header + EXTRA_HEADER) % ALIGNMENT
    return struct.pack("<HH", PADDING_ID, length) + bytes(length)


def _map_member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{path} was compressed by another program; read it with numpy.load")
    with archive.open(member) as data:
        np.lib.format.read_magic(data)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(data)
        header = data.tell()
    if dtype.kind not in NUMBERS:  # an array of objects would be memory addresses out of the file
        raise ValueError(f"{path} holds an array of {dtype}, no numbers")
    with path.open("rb") as file:
        file.seek(member.header_offset)
        name, extra = struct.unpack("<HH", file.read(LOCAL_HEADER)[26:])
    start = member.header_offset + LOCAL_HEADER + name + extra + header
    return np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")
