# JPEG 2000: its bit depths, some of which Pillow silently reads wrongly.
"""JPEG 2000 files as Pillow's plugin reads them, at the right scale."""

from __future__ import annotations

import struct
from typing import IO

from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

from featx.errors import DecodeError

# What a codestream starts with, the marker of its sizes, and where that names the components (ISO/IEC 15444-1, A.5.1).
CODESTREAM, COMPONENTS = b"\xff\x4f\xff\x51", 40


class Jpeg2000(Jpeg2KImageFile):
    """A JPEG 2000 file whose full scale is white, whatever its depth.

    Of fewer bits than eight Pillow makes eight by adding zeros. Of more, in several channels, it makes eight by
    rounding what is nearly white up to 256, which it then takes for black; these are refused.
    """

    def _open(self) -> None:
        super()._open()
        assert self.fp is not None  # noqa: S101 - it is what has just been read
        position = self.fp.tell()
        depths = set(_depths(self.fp))
        self.fp.seek(position)
        self._depth = max(depths)
        wrong = self._depth > 8 and self.mode != "I;16"
        wrong |= self._depth < 8 and self.mode in ("P", "PA")
        if wrong or len(depths) > 1 or self._depth > 16:
            bits = "/".join(str(depth) for depth in sorted(depths))
            raise DecodeError(
                f"{bits}-bit JPEG 2000 in the colours {self.mode} is not supported; convert it to 8 bits a channel"
            )

    def load_end(self) -> None:
        """Scale fewer bits than eight."""
        if self._depth < 8:
            full, shift = (1 << self._depth) - 1, 8 - self._depth
            table = [((value >> shift) * 255 + full // 2) // full for value in range(256)]
            self.im = self.im.point(table * len(self.getbands()), None)


def _depths(file: IO[bytes]) -> list[int]:
    """Return the bits of each component, by the codestream's header."""
    file.seek(0)
    head = file.read(12)
    position = 0
    while not head.startswith(CODESTREAM):  # box by box; a length of 1 stands for one of 64 bits, 0 for all the rest
        length, kind = struct.unpack(">I4s", head[:8])
        file.seek(position + 8)
        body = position + 8
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
            body += 8
        if kind == b"jp2c":
            position = body
        elif length < 8:
            raise SyntaxError("the file has no codestream")
        else:
            position += length
        file.seek(position)
        head = file.read(12)
    file.seek(position + COMPONENTS)
    (count,) = struct.unpack(">H", file.read(2))
    return [(size & 0x7F) + 1 for size in file.read(3 * count)[::3]]
