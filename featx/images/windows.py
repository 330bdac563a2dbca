# Windows: parts of a picture, read without decoding more of it than its file makes necessary.
"""Pictures that are read part by part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO, Protocol

import numpy as np
from PIL import Image

from featx.images import decoding, slides
from featx.images.containers import open_image
from featx.images.pieces import Notes
from featx.images.tiff import Tiff
from featx.images.tiff_blocks import TiffBlocks, has_blocks
from featx.options import Limits

Size = tuple[int, int]
Box = tuple[int, int, int, int]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class Windows(Protocol):
    """A picture whose parts can be read, upright and in RGB; from one thread at a time.

    Attributes
    ----------
    size : (int, int)
        Width and height of what is read, in pixels.
    original : (int, int)
        Those of the picture at its full resolution.
    orientation : int
        The EXIF orientation, 1 to 8, that is applied.
    notes : Notes
        What of its metadata is damaged.
    as_a_whole : int
        Bytes that it takes because it can only be decoded as a whole; 0 if parts can be.
    """

    @property
    def size(self) -> Size: ...  # noqa: D102 - as above
    @property
    def original(self) -> Size: ...  # noqa: D102
    @property
    def orientation(self) -> int: ...  # noqa: D102
    @property
    def notes(self) -> Notes: ...  # noqa: D102
    @property
    def as_a_whole(self) -> int: ...  # noqa: D102

    def read(self, box: Box) -> Pixels:
        """Return the (h, w, 3) pixels within left, top, right and bottom."""
        ...


class Whole:
    """A picture that is decoded as a whole when the first part of it is read."""

    def __init__(self, undecoded: decoding.Undecoded) -> None:
        self._undecoded, self._image = undecoded, list[Image.Image]()
        self.size = self.original = undecoded.size
        self.orientation, self.notes = undecoded.orientation, undecoded.notes
        self.as_a_whole = 4 * self.size[0] * self.size[1]  # Pillow's pixels

    def read(self, box: Box) -> Pixels:
        """Cut a part out."""
        if not self._image:
            self._image.append(self._undecoded.rgb())
        return np.asarray(self._image[0].crop(box))


class Placed:
    """A picture that has been decoded and placed already."""

    as_a_whole, orientation = 0, 1

    def __init__(self, pixels: Pixels) -> None:
        self._pixels, self.notes = pixels, Notes()
        self.size = self.original = (pixels.shape[1], pixels.shape[0])

    def read(self, box: Box) -> Pixels:
        """Cut a part out."""
        left, top, right, bottom = box
        return self._pixels[top:bottom, left:right]


@contextmanager
def opened(
    file: BinaryIO, locator: str, limits: Limits, alone: decoding.Alone, mpp: float | None = None
) -> Iterator[Windows]:
    """Open a picture; only its header is read.

    Slides, and TIFF files of tiles or strips, are read part by part; `limits` then apply to the parts that are decoded
    at a time. All others are decoded as a whole.

    Parameters
    ----------
    file : binary file
        The picture's.
    locator : str
        Where it is.
    limits : Limits
        How many pixels may be decoded at once.
    alone : callable
        See `featx.images.decoding.opened`.
    mpp : float or None
        Microns a pixel at which it is to be read as a slide.

    Raises
    ------
    DecodeError
        If it is too large, or of a kind that is not supported.
    Exception
        Whatever a decoder raises for a broken file.
    """
    if mpp is not None or slides.has_suffix(locator):
        with slides.opened(locator, mpp) as slide:
            yield slide
        return
    if file.read(4)[:2] in (b"II", b"MM"):
        notes = Notes()
        image = open_image(file, notes)
        if isinstance(image, Tiff) and has_blocks(image, file, limits.max_pixels):
            yield TiffBlocks(image, file, notes)
            return
    whole: AbstractContextManager[decoding.Undecoded] = decoding.opened(file, limits.max_pixels, alone)
    with whole as undecoded:
        yield Whole(undecoded)
