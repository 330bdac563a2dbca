# Locators: the text that says where an image is, and the only functions that take it for the path of a file.
"""From an image's locator to its bytes.

An `Item` has its locator as text. Only the functions here access what a locator refers to.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from featx.errors import UnreadableError
from featx.files import nameless
from featx.files import sha256_of as file_sha256
from featx.images import archives
from featx.options import Limits
from featx.signatures import HEAD, described
from featx.text import amount_of
from featx.values import Item, Stat

# Bytes of a member that are held in memory; a larger one is copied to a file that has no name.
IN_MEMORY = 1 << 26


def opened(locator: str, limits: Limits, going_on: Callable[[], None] = lambda: None) -> BinaryIO:
    """Open an image to be read.

    Parameters
    ----------
    locator : str
        A file's path, or ``archive::member``.
    limits : Limits
        How large it may be.
    going_on : callable
        Called every now and then while an archive is decompressed up to a member.

    Raises
    ------
    UnreadableError
        If it is not a file, or larger than allowed, or a member that cannot be read.
    OSError, ValueError
        If it is not there, or cannot be opened.
    """
    if found := archives.split(locator):
        size, pieces = archives.at(found[0]).source(found[1], going_on)
        _require_small(size, limits)
        return _copied(size, pieces)
    status = os.stat(locator)  # noqa: PTH116 - a million Path objects cost more than their files
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device could take forever
        raise UnreadableError("read", "not a file")
    _require_small(status.st_size, limits)
    return Path(locator).open("rb")


def _require_small(size: int, limits: Limits) -> None:
    if size > limits.max_bytes:
        raise UnreadableError(
            "read", f"{amount_of(size)} is more than the {amount_of(limits.max_bytes)} allowed (--max-bytes)"
        )


def _copied(size: int, pieces: Iterator[bytes]) -> BinaryIO:
    """Copy a member to where it can be read in any order."""
    file = (nameless() if size > IN_MEMORY else None) or BytesIO()
    try:
        for piece in pieces:
            file.write(piece)
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return file


def read(locator: str, limits: Limits, going_on: Callable[[], None] = lambda: None) -> bytes | None:
    """Read a member of an archive; None for a file, which can be opened by its path. Errors are those of `opened`."""
    if not archives.split(locator):
        return None
    with opened(locator, limits, going_on) as file:
        return file.read()


def in_order(items: Sequence[Item]) -> list[Item]:
    """Return items that are about to be read, those of compressed archives in the order in which they lie there.

    Where members lie is found out here: of a large archive that takes longer than any image may.
    """
    slots: dict[str, list[int]] = {}
    for slot, item in enumerate(items):
        if archives.MARK in item.path and (found := archives.split(item.path)):
            slots.setdefault(found[0], []).append(slot)
    ordered = list(items)
    for path, taken in slots.items():
        with suppress(OSError):
            archive, start = archives.at(path), len(path) + len(archives.MARK)
            if archive.is_stream():
                places = {slot: archive.place_of(items[slot].path[start:]) for slot in taken}
                for slot, source in zip(taken, sorted(taken, key=places.__getitem__), strict=True):
                    ordered[slot] = items[source]
    return ordered


def is_stream(locator: str) -> bool:
    """Whether an image can only be read after those before it."""
    found = archives.split(locator)
    return found is not None and archives.at(found[0]).is_stream()


def stat_of(locator: str) -> Stat | None:
    """Size and time of an image, or of the archive that holds it; None where they are unknown."""
    found = archives.split(locator)
    try:
        status = os.stat(found[0] if found else locator)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return Stat(status.st_size, status.st_mtime_ns)


def sha256_of(locator: str) -> str | None:
    """Hexadecimal sha256 of an image; None where it cannot be read."""
    try:
        if not (found := archives.split(locator)):
            return file_sha256(Path(locator))
        digest = hashlib.sha256()
        for piece in archives.at(found[0]).source(found[1], lambda: None)[1]:
            digest.update(piece)
        return digest.hexdigest()
    except (OSError, UnreadableError):
        return None


def exists(locator: str) -> bool:
    """Whether there is an image."""
    found = archives.split(locator)
    return archives.at(found[0]).holds(found[1]) if found else os.path.exists(locator)  # noqa: PTH110


def same_image(one: str, other: str) -> bool:
    """Whether two locators lead to one image."""
    first, second = (archives.split(locator) or (locator, "") for locator in (one, other))
    try:
        return first[1] == second[1] and os.path.samefile(first[0], second[0])  # noqa: PTH121
    except OSError:
        return False


def recognised(locator: str) -> str:
    """Say what a file is by its first bytes: ``an image``, ``a zip archive``; empty if unknown."""
    try:
        is_member = archives.split(locator) is not None
        if is_member or stat.S_ISREG(os.stat(locator).st_mode):  # noqa: PTH116
            with opened(locator, Limits()) if is_member else Path(locator).open("rb") as file:
                return described(file.read(HEAD))
    except (OSError, ValueError, UnreadableError):
        pass
    return ""
