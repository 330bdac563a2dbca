# Drawing: pictures that featx writes, which only replace pictures that it wrote before; and captions that fit.
"""What all sheets have in common."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageFont

from featx import files
from featx.errors import OutputError
from featx.text import listed, printable

# File formats of a picture by suffix, and the Exif tag (Software) and its text that mark it as ours.
PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
SOFTWARE, OURS = 0x0131, "featx"

PAPER, INK, FAINT, ACCENT = (255, 255, 255), (32, 32, 32), (128, 128, 128), (200, 60, 30)

# The quality of a JPEG, high enough for the edges of cells to stay sharp.
QUALITY = 92

# Fonts of Linux, macOS and Windows for letters that Pillow's own font lacks, which has ASCII and little more.
FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf")


def require_drawable(path: Path) -> None:
    """Refuse a picture's path before the work starts: only pictures that featx wrote may be replaced.

    Raises
    ------
    OutputError
        If it has no image suffix, its folder does not exist or takes no files, or it would replace something else.
    """
    if path.suffix.lower() not in PICTURES:
        known = listed(list(PICTURES))
        raise OutputError(f"{path} is not the name of an image file", f"Use a name that ends in {known}")
    files.require_replaceable(path, _is_ours, "drawn", "--output")


def save(sheet: Image.Image, path: Path) -> None:
    """Write a picture, marked as ours, complete or not at all.

    Raises
    ------
    OutputError
        If it cannot be written; see `require_drawable`.
    """
    require_drawable(path)
    exif = Image.Exif()
    exif[SOFTWARE] = OURS
    encoded = BytesIO()
    try:
        sheet.save(encoded, PICTURES[path.suffix.lower()], exif=exif, quality=QUALITY, optimize=True)
        files.write_atomically(path, [encoded.getbuffer()])
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(f"{path} cannot be written: {reason}", "Choose another --output") from error


def cross_out(pen: Any, box: tuple[float, float, float, float]) -> None:
    """Mark the place of a photo that is gone."""
    pen.line((box[:2], box[2:]), INK)
    pen.line(((box[0], box[3]), (box[2], box[1])), INK)


def caption(pen: Any, corner: tuple[float, float], text: str, width: float, size: int = 13, **more: Any) -> None:
    """Write one line; if it is too long, its beginning is left out, as the end of a path says more."""
    font, shown = _font_for(printable(text), size)
    while pen.textlength(shown, font) > width and len(shown) > 1:
        shown = f"…{shown[2:]}"
    pen.text(corner, shown, font=font, **{"fill": INK, **more})


def _font_for(text: str, size: int) -> tuple[Any, str]:
    """Choose the font that lacks the fewest letters of a text, and escape those."""
    if text.isascii():
        return ImageFont.load_default(size), text
    font = min(_fonts(size), key=lambda each: sum(_lacks(each, letter) for letter in text))
    return font, "".join(ascii(letter)[1:-1] if _lacks(font, letter) else letter for letter in text)


@cache
def _fonts(size: int) -> list[Any]:
    """Return Pillow's own font, and those of the system that are there."""
    fonts: list[Any] = [ImageFont.load_default(size)]
    for name in FONTS:
        with suppress(OSError):
            fonts.append(ImageFont.truetype(name, size))
    return fonts


def _lacks(font: Any, letter: str) -> bool:
    """Whether a font would draw a letter as a box, as it does with what is no character at all."""
    return not letter.isascii() and bytes(font.getmask(letter)) == bytes(font.getmask("\uffff"))


def _is_ours(path: Path) -> bool:
    """Whether a picture is marked as made by featx."""
    try:
        with Image.open(path) as image:
            return str(image.getexif().get(SOFTWARE, "")).startswith(OURS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
