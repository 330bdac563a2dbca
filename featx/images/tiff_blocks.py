# Blocks of a TIFF, which are tiles or strips: each is decoded as a TIFF of its own, with the tags of the whole.
"""TIFF files read block by block.

A block's bytes, behind a header with the tags that say how pixels are stored, are a TIFF by themselves. So each is
decoded by the same code as the whole, and gives the same pixels.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2 as Tags

from featx.images.colours import loaded, to_rgb
from featx.images.containers import orientation_of
from featx.images.pieces import Notes
from featx.images.tiff import (
    BITS,
    COMPRESSION,
    PHOTOMETRIC,
    PLANAR,
    SAMPLES,
    TILE_LENGTH,
    TILE_WIDTH,
    UNCOMPRESSED,
    YCBCR,
    Tiff,
)

# Tags (TIFF 6.0) of an image's size, and of where its blocks are.
WIDTH, LENGTH, STRIP_OFFSETS, ROWS, STRIP_COUNTS, TILE_OFFSETS, TILE_COUNTS = 256, 257, 273, 278, 279, 324, 325

# Tags that say how pixels are stored: bits, compression, colours, fill order, samples, planes, fax options, predictor,
# colour map, inks, extra samples, sample format, JPEG tables, YCbCr.
STORAGE = (258, 259, 262, 266, 277, 284, 292, 293, 317, 320, 332, 338, 339, 347, 529, 530, 531, 532)

# Bytes of the strips into which one that is not compressed is cut.
STRIP = 1 << 20

# Compressions whose blocks are not complete by themselves: JPEG as it was before TIFF's technical note 2.
OLD_JPEG = 6


def has_blocks(image: Tiff, file: BinaryIO, largest: int) -> bool:
    """Whether a TIFF, opened, is stored in several blocks that can be decoded alone, each of so many pixels at most."""
    tags = _tags(file)
    try:
        (width, height), places = _layout(tags)
    except (KeyError, TypeError, ValueError):  # the decoder of the whole will say what is wrong
        return False
    columns, rows = -(-image.width // width), -(-image.height // height)
    return (
        columns * rows == len(places) > 1
        and width * height <= largest
        and tags.get(PLANAR, 1) == 1
        and tags.get(COMPRESSION, UNCOMPRESSED) != OLD_JPEG
        and orientation_of(image) == 1
        and all(count for _, count in places)
    )


class TiffBlocks:
    """A TIFF whose parts are read block by block; see `featx.images.windows.Windows`."""

    as_a_whole, orientation = 0, 1

    def __init__(self, image: Tiff, file: BinaryIO, notes: Notes) -> None:
        self.size = self.original = image.size
        self.notes = notes
        self._file, self._tags = file, _tags(file)
        self._block, self._places = _layout(self._tags)

    def read(self, box: tuple[int, int, int, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Decode the blocks that a part touches."""
        left, top, right, bottom = box
        width, height = self._block
        across = -(-self.size[0] // width)
        pixels = np.empty((bottom - top, right - left, 3), np.uint8)
        for row in range(top // height, -(-bottom // height)):
            for column in range(left // width, -(-right // width)):
                x, y = column * width, row * height
                inner = (max(left, x), max(top, y), min(right, x + width), min(bottom, y + height))
                cut = self.decoded(row * across + column).crop((inner[0] - x, inner[1] - y, inner[2] - x, inner[3] - y))
                pixels[inner[1] - top : inner[3] - top, inner[0] - left : inner[2] - left] = np.asarray(cut)
        return pixels

    def decoded(self, number: int) -> Image.Image:
        """Decode a block."""
        offset, count = self._places[number]
        width, height = self._block
        if TILE_WIDTH not in self._tags:  # the last strip may be lower
            height = min(height, self.size[1] - number * height)
        tags = Tags(prefix=self._tags.prefix)
        for tag in STORAGE:
            if tag in self._tags:
                tags.tagtype[tag] = self._tags.tagtype[tag]
                tags[tag] = self._tags[tag]
        tags.update({WIDTH: width, LENGTH: height, ROWS: height, STRIP_OFFSETS: 0, STRIP_COUNTS: count})
        alone = BytesIO()
        tags.save(alone)  # which has the strip begin behind the tags
        self._file.seek(offset)
        alone.write(self._file.read(count))
        alone.seek(0)
        return to_rgb(loaded(Tiff(alone)))


def _tags(file: BinaryIO) -> Any:
    """Read the tags of the first image, as they are stored."""
    file.seek(0)
    header = file.read(8)
    tags = Tags(header + (file.read(8) if header[2] == 43 else b""))  # BigTIFF's is twice as long
    file.seek(tags.next)
    tags.load(file)
    return tags


def _layout(tags: Any) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Return the width and height of a block, and where each begins and how long it is.

    A single strip that is not compressed is cut into several.
    """
    is_tiled = TILE_WIDTH in tags
    names = (TILE_OFFSETS, TILE_COUNTS) if is_tiled else (STRIP_OFFSETS, STRIP_COUNTS)
    offsets, counts = ((found if isinstance(found, tuple) else (found,)) for found in map(tags.get, names))
    if is_tiled:
        return (tags[TILE_WIDTH], tags[TILE_LENGTH]), list(zip(offsets, counts, strict=True))
    width, length = tags[WIDTH], tags[LENGTH]
    is_plain = tags.get(COMPRESSION, UNCOMPRESSED) == UNCOMPRESSED and tags.get(PHOTOMETRIC) != YCBCR
    if not is_plain or len(offsets) > 1:
        return (width, min(tags.get(ROWS, length), length)), list(zip(offsets, counts, strict=True))
    bits = tags.get(BITS, (1,))
    across = -(-width * sum(bits if len(bits) > 1 else bits * tags.get(SAMPLES, 1)) // 8)
    rows = max(1, STRIP // across)
    places = [(offsets[0] + top * across, min(rows, length - top) * across) for top in range(0, length, rows)]
    return (width, rows), places
