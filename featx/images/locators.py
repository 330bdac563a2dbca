# Locators: the text that says where an image is, and the only functions that take it for the path of a file.
"""From an image's locator to its bytes.

An `Item` has its locator as text. Only the functions here access what a locator refers to.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from featx.errors import UnreadableError
from featx.files import sha256_of as file_sha256
from featx.options import Limits
from featx.signatures import HEAD, described
from featx.text import amount_of
from featx.values import Stat


def opened(locator: str, limits: Limits) -> BinaryIO:
    """Open an image to be read.

    Raises
    ------
    UnreadableError
        If it is not a file, or larger than allowed.
    OSError, ValueError
        If it is not there, or cannot be opened.
    """
    status = os.stat(locator)  # noqa: PTH116 - a million Path objects cost more than their files
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device could take forever
        raise UnreadableError("read", "not a file")
    if status.st_size > limits.max_bytes:
        raise UnreadableError(
            "read",
            f"{amount_of(status.st_size)} is more than the {amount_of(limits.max_bytes)} allowed (--max-bytes)",
        )
    return Path(locator).open("rb")


def stat_of(locator: str) -> Stat | None:
    """Size and time of an image; None where they are unknown."""
    try:
        status = os.stat(locator)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return Stat(status.st_size, status.st_mtime_ns)


def sha256_of(locator: str) -> str | None:
    """Hexadecimal sha256 of an image; None where it cannot be read."""
    try:
        return file_sha256(Path(locator))
    except OSError:
        return None


def exists(locator: str) -> bool:
    """Whether there is an image."""
    return os.path.exists(locator)  # noqa: PTH110


def same_image(one: str, other: str) -> bool:
    """Whether two locators lead to one image."""
    try:
        return os.path.samefile(one, other)  # noqa: PTH121
    except OSError:
        return False


def recognised(locator: str) -> str:
    """Say what a file is by its first bytes: ``an image``, ``a zip archive``; empty if unknown."""
    try:
        if stat.S_ISREG(os.stat(locator).st_mode):  # noqa: PTH116
            with Path(locator).open("rb") as file:
                return described(file.read(HEAD))
    except (OSError, ValueError):
        pass
    return ""
