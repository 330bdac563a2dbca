# JPEG XL: featx reads the header itself, since the library decodes whole files at once, and some of them wrongly.
"""JPEG XL files through pillow-jxl-plugin's decoder, which is not registered with Pillow."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from typing import Any, BinaryIO

from PIL import Image

from featx.errors import DecodeError
from featx.images.plugins import JPEG_XL

# How a bare codestream begins, and a file of boxes (ISO/IEC 18181-2).
CODESTREAM, CONTAINER = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"

# Boxes to look through for the codestream, and bytes of it that its header fits into.
MOST_BOXES, MOST_BYTES = 1000, 64

# Width by height where a header names the height alone (ISO/IEC 18181-1, "SizeHeader").
RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}

# Bits of a number by its two-bit selector; each counts from the first number.
SIZES = ((1, 9), (1, 13), (1, 18), (1, 30))
DEPTHS = ((8, 0), (10, 0), (12, 0), (1, 6))


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says about its picture.

    Attributes
    ----------
    size : tuple of int
        Width and height as stored.
    unsupported : str
        Why it cannot be decoded reliably; empty if it can.
    """

    size: tuple[int, int]
    unsupported: str


def accepts(prefix: bytes) -> bool:
    """Whether a file with this beginning is a JPEG XL."""
    return prefix.startswith((CODESTREAM, CONTAINER))


def header_of(file: BinaryIO) -> Header:
    """Read a file's header; the file's position is left where reading ended.

    Raises
    ------
    DecodeError
        If there is none.
    """
    bits = _Bits(_codestream(file).removeprefix(CODESTREAM))
    size = _size(bits)
    return Header(size, "" if bits.take(1) else _unsupported(bits))


def decoded(file: BinaryIO) -> Image.Image | bytes:
    """Decode a file: to its upright picture, or to the JPEG that it was made from, bit for bit.

    The decoder applies the orientation of the codestream; EXIF's does not count (ISO/IEC 18181-2).

    Raises
    ------
    DecodeError
        If the library is missing, or the file is of a kind that it reads wrongly.
    RuntimeError
        If the file is damaged.
    """
    JPEG_XL.require()
    if unsupported := header_of(file).unsupported:
        raise DecodeError(unsupported)
    file.seek(0)
    is_jpeg, about, data, *_ = _library().Decoder(num_threads=0)(file.read())
    return data if is_jpeg else Image.frombytes(about.mode, (about.width, about.height), data)


@cache
def _library() -> Any:
    """Import the decoder alone; the package around it would register itself with Pillow, for the whole process."""
    package = find_spec(JPEG_XL.module)
    spec = package and PathFinder.find_spec(f"{package.name}.{package.name}", package.submodule_search_locations)
    if not spec or not spec.loader:
        raise DecodeError("pillow-jxl-plugin has no decoder for this machine")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _codestream(file: BinaryIO) -> bytes:
    """Return the beginning of the codestream, which may be split over several boxes, after others."""
    file.seek(0)
    start = file.read(MOST_BYTES)
    if not start.startswith(CONTAINER):
        return start
    pieces, position = b"", 0
    for _ in range(MOST_BOXES):
        file.seek(position)
        head = file.read(16)
        length, kind, begins = int.from_bytes(head[:4]), head[4:8], 8
        if length == 1:
            length, begins = int.from_bytes(head[8:]), 16
        end = position + length if length else position + begins + MOST_BYTES  # the last one may leave its length out
        if kind in (b"jxlc", b"jxlp"):
            begins += 4 * (kind == b"jxlp")  # a piece has its number in front
            file.seek(position + begins)
            pieces += file.read(min(MOST_BYTES, max(0, end - position - begins)))
        if len(pieces) >= MOST_BYTES or length < begins:
            break
        position = end
    return pieces


class _Bits:
    """Numbers of a codestream: the lowest bits come first."""

    def __init__(self, data: bytes) -> None:
        self._left = len(data) * 8
        self._value = int.from_bytes(data, "little")

    def take(self, bits: int) -> int:
        if bits > self._left:
            raise DecodeError("the file is damaged")
        number = self._value & (1 << bits) - 1
        self._value >>= bits
        self._left -= bits
        return number

    def choose(self, table: tuple[tuple[int, int], ...]) -> int:
        first, bits = table[self.take(2)]
        return first + self.take(bits)


def _size(bits: _Bits) -> tuple[int, int]:
    """Read a SizeHeader."""
    in_eights = bits.take(1)

    def length() -> int:
        return 8 * (1 + bits.take(5)) if in_eights else bits.choose(SIZES)

    height = length()
    if ratio := bits.take(3):
        wide, high = RATIOS[ratio]
        return height * wide // high, height
    return length(), height


def _unsupported(bits: _Bits) -> str:
    """Read an ImageMetadata up to the depth; the decoder gives an animation's last picture, and noise if it is deep."""
    if bits.take(1):
        bits.take(3)  # the orientation
        if bits.take(1):
            _size(bits)  # the size for display
        if bits.take(1):
            return "JPEG XL with a preview is not supported; save it without one"
        if bits.take(1):
            return "animated JPEG XL is not supported; save its first picture"
    if bits.take(1):
        return "floating-point pixels have no agreed range; convert it to 8 or 16 bits"
    depth = bits.choose(DEPTHS)
    return "" if depth in (8, 16) else f"{depth}-bit JPEG XL is not supported; convert it to 8 or 16 bits"
