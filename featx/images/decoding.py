# From an image file to upright 8-bit RGB: one policy for every mode, limits on size, notes on damaged metadata.
"""Decoding.

`decode` always gives an upright 8-bit RGB image, whatever the file holds; what cannot be brought there is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from io import UnsupportedOperation
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, PngImagePlugin, TiffImagePlugin

from featx.errors import DecodeError
from featx.images.colours import loaded, to_rgb
from featx.images.containers import UPRIGHT, canvas_of, open_image, orientation_of
from featx.images.pieces import Notes
from featx.options import Limits

Size = tuple[int, int]

# Pixels from which on images are decoded and resized one at a time, so that memory does not grow with the number of
# readers.
LARGE = 50_000_000

# The EXIF orientations from which on width and height change places.
SIDEWAYS = 5

Alone = Callable[[], AbstractContextManager[None]]


class Undecoded:
    """An image file whose header has been read, and nothing else yet.

    Attributes
    ----------
    size : (int, int)
        Its width and height, upright.
    orientation : int
        The EXIF orientation, 1 to 8, that `rgb` applies.
    notes : Notes
        What of its metadata is damaged.
    """

    def __init__(self, image: Image.Image, notes: Notes) -> None:
        self._image, self.notes = [image], notes
        self.orientation = orientation_of(image, notes)  # before loading, which ends Pillow's reading of tags
        self.size = image.size if self.orientation < SIDEWAYS else image.size[::-1]

    def reduced(self, side: int) -> Undecoded:
        """Have a JPEG decoded at a half, a quarter or an eighth of its size, no side of it shorter than this."""
        self._image[0].draft("RGB", (2 * side, 2 * side))
        return self

    def rgb(self) -> Image.Image:
        """Decode it, once, as upright 8-bit RGB."""
        return upright_rgb(self._image.pop(), self.orientation)  # which can then let go of it


@contextmanager
def opened(
    file: Path | BinaryIO,
    max_pixels: int = Limits().max_pixels,
    alone: Alone = nullcontext,
    largest: Callable[[Size], int] = lambda size: size[0] * size[1],
) -> Iterator[Undecoded]:
    """Open an image file to be decoded, and placed, within this context.

    Parameters
    ----------
    file : path or binary file
        The image.
    max_pixels : int
        Width times height that it may have.
    alone : callable
        Returns the context in which an image of more than `LARGE` pixels is decoded and placed.
    largest : callable
        Pixels of the largest that is made of an image of a size, as a preprocessor works it out.

    Raises
    ------
    DecodeError
        If the image is too large, or of a kind that has no agreed way to RGB.
    Exception
        Whatever Pillow raises for a broken file: far more than OSError.
    """
    with ExitStack() as stack:
        stream = stack.enter_context(file.open("rb")) if isinstance(file, Path) else file
        canvas = canvas_of(stream)
        if canvas:
            _enter(stack, canvas, canvas[0] * canvas[1], max_pixels, alone, largest)
        notes = Notes()
        image = open_image(stream, notes)
        if not canvas:
            area = getattr(image, "area", image.width * image.height)
            _enter(stack, image.size, area, max_pixels, alone, largest)
        undecoded = Undecoded(image, notes)
        del image
        yield undecoded


def decode(
    file: Path | BinaryIO, max_pixels: int = Limits().max_pixels, alone: Alone = nullcontext
) -> tuple[Image.Image, int]:
    """Read an image file as upright 8-bit RGB; parameters and errors are those of `opened`.

    Returns
    -------
    image : PIL.Image.Image
        Mode RGB.
    orientation : int
        The EXIF orientation, 1 to 8, that was applied.
    """
    with opened(file, max_pixels, alone) as undecoded:
        return undecoded.rgb(), undecoded.orientation


def upright_rgb(image: Image.Image, orientation: int | None = None) -> Image.Image:
    """Bring any image of Pillow's to upright 8-bit RGB; see `decode`. Its orientation is its own if none is given.

    A TIFF, or a PNG with transparency, that somebody opened and has not loaded yet is read from its file again, as
    `decode` reads it, since Pillow decodes some of them wrongly; those that have been loaded are taken as they are.
    """
    if orientation is None:
        image = _reopened(image)
        orientation = orientation_of(image)
    turn = UPRIGHT.get(orientation)
    image = loaded(image)
    if turn is not None:
        image = image.transpose(turn)
    return to_rgb(image)


def lift_pillow_limit() -> int | None:
    """Have Pillow leave the size of images to `decode`; returns what its own limit was, to be put back."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    return before


def _enter(stack: ExitStack, size: Size, area: int, most: int, alone: Alone, largest: Callable[[Size], int]) -> None:
    """Refuse a size that is too large, and wait for the others if it is large."""
    if area > most:
        raise DecodeError(f"{area / 1e6:.4g} megapixels are more than the {most / 1e6:.4g} allowed (--max-pixels)")
    if max(area, largest(size), largest(size[::-1])) > LARGE:  # it may be turned yet
        stack.enter_context(alone())


def _reopened(image: Any) -> Image.Image:
    """Read a file that somebody opened with Pillow, and has not loaded, by the plugins that featx uses."""
    kind, page = type(image), getattr(image, "tell", int)()
    is_png = kind is PngImagePlugin.PngImageFile and "transparency" in image.info and not page
    if not (is_png or kind is TiffImagePlugin.TiffImageFile) or not image.tile:
        return image  # type: ignore[no-any-return]
    try:
        again = open_image(image.fp, Notes())
    except (AttributeError, UnsupportedOperation):  # closed, or cannot be read twice
        return image  # type: ignore[no-any-return]
    if page:
        again.seek(page)
    return again
