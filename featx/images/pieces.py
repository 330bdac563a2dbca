# Pieces: the parts of a PNG or JPEG that make the picture, as a file of their own, and where its orientation may be.
"""Image files without their metadata.

Pillow reads all metadata while it opens a JPEG or PNG, and fails where any is broken. Here it is cut out, and the parts
that may hold an orientation are read separately.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from io import BufferedReader, BytesIO, RawIOBase
from itertools import accumulate
from typing import Any, BinaryIO

from PIL.PngImagePlugin import PngStream

# Bytes of one PNG chunk of metadata that are read; Pillow unpacks compressed ones to a megabyte at most.
LARGEST_CHUNK = 16_000_000

# Characters of notes on one image.
NOTES = 300

# PNG: chunks that make the picture, and those in which an orientation may be, or which Pillow may fail on.
PICTURE, READ = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}, {b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"iCCP"}

# Bytes that a PNG's tRNS chunk has at least, by the colour type; other types have none.
TRANSPARENCY = {0: 2, 2: 6, 3: 1}

# JPEG: segments that libjpeg takes the colours from, the marker, the name, and the bytes without which it ignores them
# (jdmarker.c); all other application segments, and comments, are metadata.
COLOUR_SEGMENTS = ((0xE0, b"JFIF\0", 14), (0xEE, b"Adobe", 12))
METADATA, APP1, SCAN, ALONE = (*range(0xE0, 0xF0), 0xFE), 0xE1, 0xDA, range(0xD0, 0xDA)

EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"

# What Pillow's `getexif` looks at, and ImageMagick's way of keeping EXIF in a PNG.
PROFILE = "Raw profile type exif"
ORIENTED = ("exif", "xmp", "XML:com.adobe.xmp", PROFILE)


class Pieces(RawIOBase):
    """Parts of a file, read as if they were one file.

    Parameters
    ----------
    file : binary file
        The whole.
    pieces : list of (int, int)
        Where each part starts and ends.
    """

    def __init__(self, file: BinaryIO, pieces: list[tuple[int, int]]) -> None:
        self._file, self._pieces = file, pieces
        self._starts = [0, *accumulate(end - start for start, end in pieces)]
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place."""
        self._position = max(0, offset + (0, self._position, self._starts[-1])[whence])
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read from one part."""
        number = bisect_right(self._starts, self._position) - 1
        if number >= len(self._pieces):
            return 0
        start, end = self._pieces[number]
        place = start + self._position - self._starts[number]
        self._file.seek(place)
        data = self._file.read(min(len(buffer), end - place))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


class Notes:
    """Notes on one image, as one line of bounded length."""

    def __init__(self) -> None:
        self._notes: dict[str, None] = {}

    def add(self, note: str) -> None:
        """Add a note, once."""
        self._notes[note] = None

    def __str__(self) -> str:
        return "; ".join(self._notes)[:NOTES]


def png_picture(file: BinaryIO, notes: Notes) -> tuple[BinaryIO, dict[str, Any]]:
    """Return a PNG's header, palette, transparency and pixels, of an animation the first; and what may say orientation.

    Parameters
    ----------
    file : binary file
        The PNG.
    notes : Notes
        Gets what is damaged.

    Returns
    -------
    picture : binary file
        To be read while `file` is open.
    info : dict
        As Pillow's `Image.info` has it.
    """
    size, position, colour = file.seek(0, 2), 8, -1
    pieces = [(0, 8)]
    info: dict[str, Any] = {"exif": b""}  # otherwise Pillow would decode the pixels to look for EXIF behind them
    while position < size:
        file.seek(position)
        head = file.read(18)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if not re.fullmatch(rb"[A-Za-z]{4}", kind):
            _keep(pieces, position, size)  # whatever this is, Pillow will say
            break
        end = min(position + 12 + length, size)
        if kind == b"IHDR":
            colour = head[-1]
        if kind in PICTURE or (kind == b"tRNS" and length >= TRANSPARENCY.get(colour, size)):
            _keep(pieces, position, end)
        elif kind in READ:
            info |= _read_chunk(file, position, length, kind, notes)
        position = end if kind != b"IEND" else size
    return _joined(file, pieces), info


def _read_chunk(file: BinaryIO, position: int, length: int, kind: bytes, notes: Notes) -> dict[str, Any]:
    """Read a chunk that may hold an orientation."""
    file.seek(position + 8)
    data = file.read(min(length, LARGEST_CHUNK) + 4)
    stream = PngStream(BytesIO(data))
    try:
        stream.call(kind, 0, length)
        stream.fp.seek(length)  # type: ignore[union-attr]
        stream.crc(kind, data[:length])
        info = {name: stream.im_info[name] for name in ORIENTED if name in stream.im_info}
        if PROFILE in info:  # ImageMagick's: a heading of three lines, and hexadecimal digits
            info["exif"] = bytes.fromhex("".join(info.pop(PROFILE).split("\n")[3:]))
    except Exception:  # noqa: BLE001 - whatever it is, the pixels are still good
        notes.add(f"its {kind.decode()} chunk is damaged or too large and was ignored")
        return {}
    return info


def jpeg_picture(file: BinaryIO) -> tuple[BinaryIO, dict[str, Any]]:
    """Return a JPEG without its application segments, of a stereo picture (MPO) the first; see `png_picture`."""
    size, position = file.seek(0, 2), 2
    pieces = [(0, 2)]
    info: dict[str, Any] = {}
    while position < size:
        file.seek(position)
        head = file.read(4)
        if not head.startswith(b"\xff") or head.startswith((b"\xff\0", b"\xff\xff")):  # padding, or junk
            position = _next_marker(file, position + 1)
            continue
        marker, length = int.from_bytes(head[1:2], "big"), int.from_bytes(head[2:], "big")
        end = min(position + (2 if marker in ALONE else 2 + max(length, 2)), size)
        if marker == SCAN or marker < 0xC0:  # the picture, or something for Pillow to refuse
            end = size
        data = file.read(end - position - 4) if marker in METADATA else b""
        if marker not in METADATA or any(
            marker == code and data.startswith(name) and len(data) >= most for code, name, most in COLOUR_SEGMENTS
        ):
            _keep(pieces, position, end)
        elif marker == APP1 and data.startswith(EXIF):
            info["exif"] = info["exif"] + data[len(EXIF) :] if "exif" in info else data
        elif marker == APP1 and data.startswith(XMP):
            info["xmp"] = data[len(XMP) :]
        position = end
    return _joined(file, pieces), info


def _next_marker(file: BinaryIO, position: int) -> int:
    """Return where the next 0xFF is; libjpeg, too, skips what is before it."""
    file.seek(position)
    while block := file.read(1 << 16):
        place = block.find(b"\xff")
        if place >= 0:
            return position + place
        position += len(block)
    return position


def _keep(pieces: list[tuple[int, int]], start: int, end: int) -> None:
    if pieces[-1][1] == start:
        pieces[-1] = (pieces[-1][0], end)
    else:
        pieces.append((start, end))


def _joined(file: BinaryIO, pieces: list[tuple[int, int]]) -> BinaryIO:
    return BufferedReader(Pieces(file, pieces), 1 << 16)
