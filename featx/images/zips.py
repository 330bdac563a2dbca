# Zip files: what is in them by their central directory, entry by entry, and the bytes of a member.
"""Reading zips, anybody's.

Python's zipfile keeps half a kilobyte of every member, and thus half a gigabyte of a million; here nothing is kept, and
an entry is read again when its member is wanted. What is read: members stored or deflated, Zip64, archives with
something in front. The names of things are those of PKWARE's APPNOTE.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from featx.errors import UnreadableError
from featx.images.storage import BLOCK, opened, part
from featx.images.tars import shown
from featx.values import Stat

# Signature and layout of the records that are read.
CENTRAL, LOCAL = struct.Struct("<4s4xHH4xLLLHHH4xLL"), struct.Struct("<4s2xHH4xLLLHH")
END, LOCATOR, END64 = struct.Struct("<4s8xLL2x"), struct.Struct("<4s4xQ4x"), struct.Struct("<4s36xQQ")

# The longest comment behind the end record, flags, methods, and what stands for a number that does not fit.
COMMENT, ENCRYPTED, SIZES_FOLLOW, STORED, DEFLATED, ELSEWHERE = 65535, 1, 8, 0, 8, 0xFFFFFFFF


class Entry(NamedTuple):
    """What an archive says of a member.

    Attributes
    ----------
    name : str
        Undecodable bytes are surrogates.
    flags, method, crc : int
        As they are written.
    packed, size : int
        Bytes in the archive, and uncompressed.
    header : int
        Where its local header is, from the beginning of the archive.
    mode : int
        Unix's mode; 0 where there is none.
    length : int
        Of the entry itself.
    """

    name: str
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    header: int
    mode: int
    length: int


def members(file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Go through a zip's entries.

    Yields
    ------
    (str, int, int)
        Name and place of an entry, and the place of the archive's beginning. Folders are left out.

    Raises
    ------
    UnreadableError
        Where the archive is damaged. If its central directory is missing, as of one that was cut short, that is after
        all members that can be found without.
    """
    try:
        place, end, begin = _central_directory(file)
    except (struct.error, OSError, ValueError, OverflowError):
        yield from _without_directory(file)
        return
    last = ""
    while place < end:
        file.seek(place)
        entry = _entry_at(file, place)
        if entry is None:
            raise UnreadableError(
                "read", f"it is damaged{last and f', after {shown(last)}'}; what follows cannot be read"
            )
        last = entry.name
        if not last.endswith("/"):
            yield last, place, begin
        place += entry.length


def _central_directory(file: BinaryIO) -> tuple[int, int, int]:
    """Return where the central directory begins and ends, and where the archive begins."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - COMMENT - END.size)
    file.seek(start)
    tail = file.read()
    found = tail.rfind(b"PK\5\6")
    if found < 0:
        raise ValueError("no end")
    end = start + found
    _, length, offset = END.unpack_from(tail, found)
    file.seek(max(0, end - LOCATOR.size))
    signature, place = LOCATOR.unpack(file.read(LOCATOR.size)) if end >= LOCATOR.size else (b"", 0)
    if signature == b"PK\6\7":
        end -= LOCATOR.size + 56
        for at in (end, place):  # the usual place first: files in front move the other one
            file.seek(at)
            signature, length64, offset64 = END64.unpack(file.read(END64.size))
            if signature == b"PK\6\6":
                end, length, offset = at, length64, offset64
                break
    begin = end - length - offset
    if begin < 0:
        raise ValueError("no beginning")
    return begin + offset, end, begin


def _without_directory(file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Go from member to member by their local headers."""
    size = file.seek(0, os.SEEK_END)
    place, last, reason = 0, "", "it is not a zip archive, or damaged at its beginning"
    file.seek(0)
    while (entry := _entry_at(file, place)) and not (entry.flags & SIZES_FOLLOW and not entry.packed):
        reason = f"it ends too early, after {shown(last) or 'its beginning'}; what follows is missing"
        if place + entry.length + entry.packed > size:
            break
        last = entry.name
        if not last.endswith("/"):
            yield last, place, 0
        place += entry.length + entry.packed
        file.seek(place)
        reason = f"it ends too early, after {shown(last)}; what follows is missing"
    raise UnreadableError("read", reason)


def _entry_at(file: BinaryIO, place: int) -> Entry | None:
    """Read the entry, or local header, at a place where the file is; None where there is none."""
    head = file.read(CENTRAL.size)
    try:
        if head.startswith(b"PK\1\2"):
            _, flags, method, crc, packed, size, named, extra, comment, attributes, header = CENTRAL.unpack(head)
            fixed, mode = CENTRAL.size, attributes >> 16
        else:
            signature, flags, method, crc, packed, size, named, extra = LOCAL.unpack_from(head)
            if signature != b"PK\3\4":
                return None
            fixed, mode, comment, header = LOCAL.size, 0, 0, place
            file.seek(place + fixed)
        name, more = file.read(named), file.read(extra)
        if len(name) + len(more) < named + extra:
            return None
        size, packed, header = _wide(more, size, packed, header)
    except struct.error:
        return None
    text = os.fsdecode(name.partition(b"\0")[0])
    return Entry(text, flags, method, crc, packed, size, header, mode, fixed + named + extra + comment)


def _wide(extra: bytes, *numbers: int) -> list[int]:
    """Replace numbers that do not fit by those of the Zip64 field, which has them in this order."""
    if ELSEWHERE not in numbers:
        return list(numbers)
    place = 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, place)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, place + 4))
            return [next(wide, number) if number == ELSEWHERE else number for number in numbers]
        place += 4 + length
    return list(numbers)


def source(path: str, at: Stat, place: int, begin: int) -> tuple[int, Iterator[bytes]]:
    """Return a member's size, and its bytes piece by piece.

    Raises
    ------
    UnreadableError
        If it cannot be read; while the pieces are taken, if they are not what the archive says.
    """
    with opened(path, at) as file:
        file.seek(place)
        entry = _entry_at(file, place)
        header = begin + entry.header if entry else 0
        file.seek(header)
        local = _entry_at(file, header)
    if entry is None or local is None:
        raise UnreadableError("read", "its entry in the archive is damaged")
    if stat.S_IFMT(entry.mode) not in (0, stat.S_IFREG):
        link = stat.S_ISLNK(entry.mode)
        raise UnreadableError("read", "a link, which featx does not follow in archives" if link else "not a file")
    if (entry.flags | local.flags) & ENCRYPTED:
        raise UnreadableError("read", "encrypted")
    if entry.method not in (STORED, DEFLATED):
        raise UnreadableError("read", f"compressed by a method (number {entry.method}) that featx does not read")
    return entry.size, _checked(_pieces(path, at, header + local.length, entry), entry)


def _checked(pieces: Iterator[bytes], entry: Entry) -> Iterator[bytes]:
    left, crc = entry.size, 0
    for piece in pieces:
        left, crc = left - len(piece), zlib.crc32(piece, crc)
        if left < 0:
            raise UnreadableError("read", "larger than the archive says")
        yield piece
    if left or crc != entry.crc:
        raise UnreadableError("read", "damaged: its checksum is not the one in the archive")


def _pieces(path: str, at: Stat, start: int, entry: Entry) -> Iterator[bytes]:
    if entry.method == STORED:
        yield from part(path, at, start, entry.packed)
        return
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    for block in part(path, at, start, entry.packed):
        packed = block
        while packed and not inflater.eof:
            yield inflater.decompress(packed, BLOCK)
            packed = inflater.unconsumed_tail
    yield inflater.flush()
