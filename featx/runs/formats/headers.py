# The head of a .npy: written, counted, and read with care.
"""What comes before an array's numbers."""

from __future__ import annotations

import io
import threading
from typing import Any, BinaryIO

import numpy as np

from featx.dtypes import LETTERS
from featx.values import Field

# Kinds of numpy's types that are read: signed, unsigned, floating, Unicode.
PLAIN = "iufU"

_PARSING = threading.Lock()


def npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Lay out the head of a ``.npy``, a multiple of 64 bytes."""
    header = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, facts)
    return header.getvalue()


def bytes_of_npy(field: Field) -> int:
    """Return the bytes of a ``.npy`` with an array of a field."""
    dtype = np.dtype(f"U{LETTERS}" if field.dtype == "text" else field.dtype)
    return len(npy_header(dtype, field.lengths)) + field.bytes


def read_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the head of a ``.npy``: shape, whether in Fortran's order, type; the data follow.

    One at a time: numpy has Python parse it, which in several threads at once goes wrong now and then (CPython 3.11).

    Raises
    ------
    ValueError
        If it is not the head of a ``.npy``.
    """
    with _PARSING:
        np.lib.format.read_magic(file)
        return np.lib.format.read_array_header_1_0(file)
