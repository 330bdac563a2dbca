# Lists of paths: from the bytes of a file, or of standard input, to one path an image.
"""Reading lists."""

from __future__ import annotations

import codecs
import os
import re
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from featx.errors import UsageError

# How texts in other encodings than the file system's begin; UTF-32's mark begins with UTF-16's.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

# The first bytes of what is easily given in place of a list; none of them can begin a list.
IMAGES = (
    rb"\xff\xd8\xff",  # JPEG
    rb"\x89PNG\r\n\x1a\n",
    rb"GIF8[79]a.[\x00-\x1f]",
    rb"RIFF.{4}WEBP",
    rb"BM.{4}\0{4}",
    rb"(II[*+]\0|MM\0[*+])",  # TIFF
    rb"P[1-7]\n(#[^\n]*\n)*\d+ \d+\n",  # PPM and its relatives
    rb"\0\0\0.(ftyp|jP  )",  # AVIF and JPEG 2000
    rb"\xff\x4f\xff\x51",
)
ARCHIVES = (
    rb"PK(\x03\x04|\x05\x06)",
    rb"\x1f\x8b",  # gzip
    rb"BZh[1-9]1AY&SY",
    rb"\xfd7zXZ\0",
    rb"\x28\xb5\x2f\xfd",  # Zstandard
    rb"7z\xbc\xaf\x27\x1c",
    rb"Rar!\x1a\x07",
    rb".{257}ustar",
)

# Bytes that are looked at.
HEAD = 1024


def read_file(path: str | PathLike[str]) -> tuple[str, ...]:
    """Read the list in a file.

    Raises
    ------
    UsageError
        If it cannot be read, or is none.
    """
    name = f"The list {Path(path)}"
    try:
        with Path(path).open("rb") as file:
            return read_stream(file, name)
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error


def read_stream(file: BinaryIO, name: str) -> tuple[str, ...]:
    """Read the list in an open file, which is called `name` in errors.

    Raises
    ------
    UsageError
        If it cannot be read, or is none.
    """
    try:
        head = file.read(HEAD)
        if any(re.match(first, head, re.DOTALL) for first in IMAGES):
            raise UsageError(f"{name} is an image, not a list of paths", "Give images as inputs")
        if any(re.match(first, head, re.DOTALL) for first in ARCHIVES):
            raise UsageError(f"{name} is an archive, not a list of paths", "Unpack it, and give its folder as an input")
        return read_list(head + file.read())
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error


def read_list(data: bytes) -> tuple[str, ...]:
    """Split a list of paths: one a line, or separated by NUL as ``find -print0`` does it.

    It is in the file system's encoding, or in UTF-16 or UTF-32, as some editors and shells write it.

    Raises
    ------
    UnicodeDecodeError
        If it begins like UTF-16 or UTF-32, and is none.
    """
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), None) or _unmarked(data)
    text = data.decode(encoding) if encoding else os.fsdecode(data.removeprefix(codecs.BOM_UTF8))
    lines = text.split("\0") if "\0" in text else [line.removesuffix("\r") for line in text.split("\n")]
    return tuple(line for line in lines if line.strip())


def _unmarked(data: bytes) -> str | None:
    """Recognise UTF-16 without a mark: every second byte is zero.

    A list of names of one byte each, with zeros between them, looks the same, but for dots, slashes and ends of lines,
    which name no images.
    """
    even, odd = data[:HEAD:2], data[1:HEAD:2]
    for encoding, letters, zeros in (("utf-16-le", even, odd), ("utf-16-be", odd, even)):
        if letters and all(letters) and not any(zeros) and set(letters) & set(b"./\n"):
            return encoding
    return None


def _unreadable(name: str, error: OSError | ValueError) -> UsageError:
    if isinstance(error, UnicodeDecodeError):
        return UsageError(f"{name} begins like {error.encoding}, and is none: {error.reason}", "Write it as UTF-8")
    reason = error.strerror if isinstance(error, OSError) else error
    return UsageError(f"{name} cannot be read: {reason or error}", "Check the path")
