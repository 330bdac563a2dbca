# Lists of paths: from the bytes of a file, or of standard input, to one path per image.
"""Reading lists."""

from __future__ import annotations

import codecs
import os
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from featx.errors import UsageError
from featx.signatures import HEAD, archive_kind, is_image

# How texts in other encodings than the file system's begin; UTF-32's mark begins with UTF-16's.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_file(path: str | PathLike[str]) -> tuple[str, ...]:
    """Read the list in a file.

    Raises
    ------
    UsageError
        If it cannot be read, or is not a list.
    """
    name = f"The list {Path(path)}"
    try:
        with Path(path).open("rb") as file:
            return read_stream(file, name)
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error


def read_stream(file: BinaryIO, name: str) -> tuple[str, ...]:
    """Read the list in an open file; errors call it `name`.

    Raises
    ------
    UsageError
        If it cannot be read, or is not a list.
    """
    try:
        head = file.read(HEAD)
        if is_image(head):
            raise UsageError(f"{name} is an image, not a list of paths", "Give images as inputs")
        if archive_kind(head):
            raise UsageError(f"{name} is an archive, not a list of paths", "Give archives as inputs")
        return read_list(head + file.read())
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error


def read_list(data: bytes) -> tuple[str, ...]:
    """Split a list of paths: one per line, or separated by NUL, as by ``find -print0``.

    It is in the file system's encoding, or in UTF-16 or UTF-32, which some editors and shells write.

    Raises
    ------
    UnicodeDecodeError
        If it begins like UTF-16 or UTF-32, but is neither.
    """
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), None) or _unmarked(data)
    text = data.decode(encoding) if encoding else os.fsdecode(data.removeprefix(codecs.BOM_UTF8))
    lines = text.split("\0") if "\0" in text else [line.removesuffix("\r") for line in text.split("\n")]
    return tuple(line for line in lines if line.strip())


def _unmarked(data: bytes) -> str | None:
    """Recognise UTF-16 without a mark: every second byte is zero.

    NUL-separated names of one byte each look the same, except that no image is named by a dot, a slash or an end of
    line alone.
    """
    even, odd = data[:HEAD:2], data[1:HEAD:2]
    for encoding, letters, zeros in (("utf-16-le", even, odd), ("utf-16-be", odd, even)):
        if letters and all(letters) and not any(zeros) and set(letters) & set(b"./\n"):
            return encoding
    return None


def _unreadable(name: str, error: OSError | ValueError) -> UsageError:
    if isinstance(error, UnicodeDecodeError):
        return UsageError(
            f"{name} looks like {error.encoding}, but cannot be decoded: {error.reason}", "Write it as UTF-8"
        )
    reason = error.strerror if isinstance(error, OSError) else error
    return UsageError(f"{name} cannot be read: {reason or error}", "Check the path")
