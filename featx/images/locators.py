# Locators: the text that says where an image is, and the only functions that take it for the path of a file.
"""From an image's locator to its bytes.

An `Item` has its locator as text. Only the functions here access what a locator refers to.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from msgspec.structs import replace

from featx.errors import UnreadableError
from featx.files import nameless
from featx.files import sha256_of as file_sha256
from featx.images import archives, remote, storage
from featx.options import Limits
from featx.paths import is_url, path_text
from featx.signatures import HEAD, described
from featx.text import amount_of
from featx.values import Item, Stat

# Bytes of a member that are held in memory; a larger one is copied to a file that has no name.
IN_MEMORY = 1 << 26

# Remote images that are looked up at the same time.
LOOKED_UP = 32


def opened(
    locator: str, limits: Limits, going_on: Callable[[], None] = lambda: None, known: Stat | None = None
) -> BinaryIO:
    """Open an image to be read.

    Parameters
    ----------
    locator : str
        A file's path or URL, or ``archive::member``.
    limits : Limits
        How large it may be.
    going_on : callable
        Called every now and then while an archive is decompressed up to a member, and while data arrives.
    known : Stat or None
        What is known of a remote file.

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
    if is_url(locator):
        known = known or remote.stat_of(locator)
        _require_small(known.bytes, limits)
        return _copied(known.bytes, _arriving(remote.pieces(locator, known), limits, going_on))
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


def _arriving(pieces: Iterator[bytes], limits: Limits, going_on: Callable[[], None]) -> Iterator[bytes]:
    """Pass on what arrives, as long as that is no more than allowed."""
    total = 0
    for piece in pieces:
        total += len(piece)
        _require_small(total, limits)
        going_on()
        yield piece


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


def read(
    locator: str, limits: Limits, going_on: Callable[[], None] = lambda: None, known: Stat | None = None
) -> bytes | None:
    """Read a remote image, or a member of an archive; None for a file, which can be opened by its path.

    Parameters and errors are those of `opened`.
    """
    if not (is_url(locator) or archives.split(locator)):
        return None
    with opened(locator, limits, going_on, known) as file:
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
        with suppress(OSError, UnreadableError):
            archive, start = archives.at(path), len(path) + len(archives.MARK)
            if archive.is_stream():
                places = {slot: archive.place_of(items[slot].path[start:]) for slot in taken}
                for slot, source in zip(taken, sorted(taken, key=places.__getitem__), strict=True):
                    ordered[slot] = items[source]
    return ordered


def is_stream(locator: str) -> bool:
    """Whether an image can only be read after those before it."""
    with suppress(OSError, UnreadableError):
        found = archives.split(locator)
        return found is not None and archives.at(found[0]).is_stream()
    return False


def stat_of(locator: str) -> Stat | None:
    """Size and time of an image, or of the archive that holds it; None where they are unknown."""
    found = archives.split(locator)
    try:
        return archives.at(found[0]).stat if found else storage.stat_of(locator)
    except (OSError, ValueError, UnreadableError):
        return None


def with_stats(items: Sequence[Item], wanted: Container[str]) -> list[Item]:
    """Look up remote images of which nothing is known yet, many at a time; those with the wanted keys."""
    asked = [
        place
        for place, item in enumerate(items)
        if item.stat is None and is_url(item.path) and item.key in wanted and not archives.split(item.path)
    ]
    found = list(items)
    if asked:
        with ThreadPoolExecutor(LOOKED_UP) as pool:
            for place, stat in zip(asked, pool.map(stat_of, (items[place].path for place in asked)), strict=True):
                found[place] = replace(items[place], stat=stat)
    return found


def sha256_of(locator: str) -> str | None:
    """Hexadecimal sha256 of an image; None where it cannot be read."""
    try:
        if not (is_url(locator) or archives.split(locator)):
            return file_sha256(Path(locator))
        with opened(locator, Limits()) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except (OSError, UnreadableError):
        return None


def exists(locator: str) -> bool:
    """Whether there is an image."""
    try:
        if found := archives.split(locator):
            return archives.at(found[0]).holds(found[1])
        storage.stat_of(locator)
    except (OSError, ValueError, UnreadableError):
        return False
    return True


def same_image(one: str, other: str) -> bool:
    """Whether two locators lead to one image."""
    first, second = (archives.split(locator) or (locator, "") for locator in (one, other))
    try:
        if is_url(first[0]) or is_url(second[0]):
            return first[1] == second[1] and path_text(first[0]) == path_text(second[0])
        return first[1] == second[1] and os.path.samefile(first[0], second[0])  # noqa: PTH121
    except OSError:
        return False


def recognised(locator: str) -> str:
    """Say what a file is by its first bytes: ``an image``, ``a zip archive``; empty if unknown."""
    try:
        is_member = is_url(locator) or archives.split(locator) is not None
        if is_member or stat.S_ISREG(os.stat(locator).st_mode):  # noqa: PTH116
            with opened(locator, Limits()) if is_member else Path(locator).open("rb") as file:
                return described(file.read(HEAD))
    except (OSError, ValueError, UnreadableError):
        pass
    return ""
