# Drawing: pictures that featx writes, which replace nothing but pictures that it wrote before; captions that fit.
"""What sheets of every kind are made of."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageFont

from featx import files
from featx.errors import OutputError
from featx.text import listed, printable

# File formats of a picture, and the text that marks it as ours (in the Exif tag of that name).
PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
SOFTWARE, OURS = 0x0131, "featx"

PAPER, INK, FAINT, ACCENT = (255, 255, 255), (32, 32, 32), (128, 128, 128), (200, 60, 30)

# JPEG's quality, with which edges of cells stay edges.
QUALITY = 92


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
    if not path.parent.is_dir():
        raise OutputError(f"There is no folder {path.parent}", "Create it, or choose another --output")
    if os.path.lexists(path) and not _is_ours(path):
        raise OutputError(f"{path} exists and was not drawn by featx", "Choose another --output")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path} cannot be written: Permission denied", "Choose another --output")


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
    """Write one line, whose beginning is left out where it is too long; the end of a path says more."""
    font = ImageFont.load_default(size)
    shown = printable(text)
    while pen.textlength(shown, font) > width and len(shown) > 1:
        shown = f"…{shown[2:]}"
    pen.text(corner, shown, font=font, **{"fill": INK, **more})


def _is_ours(path: Path) -> bool:
    """Whether a picture is marked as made by featx."""
    try:
        with Image.open(path) as image:
            return str(image.getexif().get(SOFTWARE, "")).startswith(OURS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
