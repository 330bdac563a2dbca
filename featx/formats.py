# The .npz of one image: what numpy.load reads, every array aligned in the file so that it can be memory-mapped.
"""Writing and reading feature files."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

# Arrays start at multiples of this many bytes: a cache line, and what numpy's own .npy headers are padded to.
ALIGNMENT = 64

# The extra field that Android's zipalign pads with; readers skip it.
PADDING_ID = 0xD935

# Fixed parts of a member's local header, and of the header of an extra field (PKWARE APPNOTE 4.3.7, 4.5.1).
LOCAL_HEADER, EXTRA_HEADER = 30, 4

# What zip stores as a time; the same pixels and recipe are to give the same bytes.
NO_TIME = (1980, 1, 1, 0, 0, 0)

SUFFIX = ".npz"


def write_npz(file: BinaryIO, arrays: Mapping[str, Array]) -> None:
    """Write arrays, uncompressed, in the order given.

    Parameters
    ----------
    file : binary file
        Open for writing, empty, seekable.
    arrays : mapping of str to ndarray
        C-contiguous; any shape and numeric type.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, values in arrays.items():
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(values))
            member = zipfile.ZipInfo(f"{name}.npy", NO_TIME)
            member.extra = _padding(file.tell() + LOCAL_HEADER + len(member.filename))
            member.file_size = header.tell() + values.nbytes
            with archive.open(member, "w") as target:
                target.write(header.getbuffer())
                target.write(values.reshape(-1).view(np.uint8).data)


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
    with path.open("rb") as file:
        file.seek(member.header_offset)
        name, extra = struct.unpack("<HH", file.read(LOCAL_HEADER)[26:])
    start = member.header_offset + LOCAL_HEADER + name + extra + header
    return np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")
