# Headers: the size of a photo from its first bytes, read in pure Python.
"""Sizes of photos before anything is decoded.

This happens before a run guards itself against files that crash a decoder, so no decoder is involved: only JPEG, PNG
and TIFF, whose headers need none, are looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from typing import Any, BinaryIO

from featx.errors import UnreadableError
from featx.images import locators
from featx.options import Limits
from featx.paths import is_url
from featx.values import Item

Size = tuple[int, int]

# Bytes read from a file, and the most photos that are looked at.
HEAD, SAMPLE = 1 << 18, 16

# JPEG: markers of frames, which hold the size (ITU-T T.81, table B.1: SOF0 to SOF15 but DHT, JPG and DAC), and those
# without a segment.
FRAMES, BARE = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}, {0x01, *range(0xD0, 0xD9)}


# TIFF: the first bytes, with the byte order, and whether it is a BigTIFF; the tags of its size; types of numbers; and
# the most tags that are looked at (TIFF 6.0).
TIFF = {b"II*\0": ("<", False), b"MM\0*": (">", False), b"II+\0": ("<", True), b"MM\0+": (">", True)}
WIDTH_LENGTH, NUMBERS, ENTRIES = (256, 257), {3: "H", 4: "I", 16: "Q"}, 1000

ANY = Limits()


def sizes_of(items: Sequence[Item], sample: int = SAMPLE, limits: Limits = ANY) -> list[Size]:
    """Return the stored (width, height) of the photos in a sample, evenly spread, where they can be read."""
    if not items:
        return []
    step = max(1, len(items) // sample)
    if any(locators.is_stream(item.path) for item in (items[0], items[-1])):
        step = 1  # the last one would have to be decompressed up to
    chosen = [item.path for item in items[::step][:sample]]
    with ThreadPoolExecutor(sample if is_url(chosen[0]) else 1) as pool:  # which mostly wait
        return [size for size in pool.map(partial(size_of, limits=limits), chosen) if size]


def typical(sizes: Sequence[Size]) -> Size | None:
    """Return the size of median aspect ratio."""
    return sorted(sizes, key=lambda size: max(size) / min(size))[len(sizes) // 2] if sizes else None


def size_of(locator: str, limits: Limits = ANY) -> Size | None:
    """Return width and height of a JPEG, PNG or TIFF file, as stored; None for any other file, or a damaged one."""
    try:
        with locators.opened(locator, limits) as file:
            head = BytesIO(file.read(HEAD))
            if head.getvalue()[:4] in TIFF:
                return _size_of_tiff(file, *TIFF[head.getvalue()[:4]])
    except (OSError, ValueError, OverflowError, struct.error, UnreadableError):
        return None
    if head.getvalue().startswith(b"\x89PNG\r\n\x1a\n"):
        width, height = (int.from_bytes(head.getvalue()[start : start + 4], "big") for start in (16, 20))
    elif head.read(2) == b"\xff\xd8":
        width, height = _size_of_jpeg(head)
    else:
        return None
    return (width, height) if width and height else None


def _size_of_tiff(file: BinaryIO, order: str, is_big: bool) -> Size | None:
    """Read the first directory's entries of width and length."""
    place, count, entry = ("Q", "Q", "2HQ8s") if is_big else ("I", "H", "2HI4s")
    file.seek(8 if is_big else 4)
    file.seek(_unpacked(file, order + place)[0])
    found = {}
    for _ in range(min(_unpacked(file, order + count)[0], ENTRIES)):
        tag, kind, _, value = _unpacked(file, order + entry)
        if tag in WIDTH_LENGTH and kind in NUMBERS:
            found[tag] = struct.unpack_from(order + NUMBERS[kind], value)[0]
    width, height = (found.get(tag, 0) for tag in WIDTH_LENGTH)
    return (width, height) if width and height else None


def _unpacked(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _size_of_jpeg(file: BinaryIO) -> Size:
    """Walk from segment to segment up to the frame's."""
    while byte := file.read(1):
        if byte != b"\xff":
            break
        while (marker := file.read(1)) == b"\xff":  # padding
            pass
        if not marker or marker[0] in BARE:
            continue
        length = int.from_bytes(file.read(2), "big")
        if marker[0] in FRAMES:
            height, width = (int.from_bytes(file.read(count)[-2:], "big") for count in (3, 2))
            return width, height
        file.seek(max(0, length - 2), 1)
    return 0, 0
