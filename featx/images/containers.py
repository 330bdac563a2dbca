# Containers: metadata of an image file is kept away from the decoder, so that no photo fails because of it.
"""Image files, opened by their content; of metadata only the orientation is used, and it fails nothing."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from io import BytesIO
from numbers import Number
from typing import Any, BinaryIO

from PIL import AvifImagePlugin, Image, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile

from featx.errors import DecodeError
from featx.images import jpegxl
from featx.images.jpeg2000 import Jpeg2000
from featx.images.pieces import Notes, jpeg_picture, png_picture
from featx.images.plugins import HEIC
from featx.images.tiff import Tiff, require_little_endian
from featx.signatures import HEAD, described, is_heic, is_image

Opener = Callable[[BinaryIO, Notes], Image.Image]

# The tag of EXIF and TIFF, and what makes a stored image upright (CIPA DC-008, "Orientation").
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(file: BinaryIO, notes: Notes) -> Image.Image:
    """Open an image by its content; nothing is decoded yet, except that WebP and JPEG XL are opened whole.

    Parameters
    ----------
    file : binary file
        Seekable. It is never opened by its name: Pillow maps such files into memory, and then turned ones wrongly.
    notes : Notes
        Gets what is damaged in the metadata.

    Raises
    ------
    DecodeError
        If it is of a kind that is not supported, or that needs an extra.
    Exception
        Whatever Pillow raises for a broken file.
    """
    file.seek(0)
    prefix = file.read(HEAD)
    for name, opener in OPENERS.items():
        accepts = ACCEPTS.get(name) or Image.OPEN[name][1]
        if accepts(prefix) is True:  # type: ignore[misc]
            file.seek(0)
            return opener(file, notes)
    if not is_image(prefix) and (what := described(prefix)):
        raise DecodeError(f"it is {what}, not an image")
    raise UnidentifiedImageError("cannot identify image file")


def orientation_of(image: Image.Image, notes: Notes | None = None) -> int:
    """Return an image's EXIF orientation, 1 to 8; 1 where it has none, or an invalid one."""
    if isinstance(image, PngImageFile) and "exif" not in image.info:
        image.load()  # as Pillow does, but here damaged pixels are not blamed on the EXIF
    try:
        exif = image.getexif()
        value = exif.get(ORIENTATION, 1)
        damaged = not len(exif) and bool(image.info.get("exif"))
    except Exception:  # noqa: BLE001 - whatever Pillow raises for broken EXIF, the pixels are still good
        value, damaged = 1, True
    if damaged and notes:
        notes.add("its EXIF is damaged and was ignored")
    # Whatever type of number it is stored as, a plain int comes out.
    plain: Any = value if isinstance(value, Number) else 1
    return next((number for number in UPRIGHT if plain == number), 1)


def canvas_of(file: BinaryIO) -> tuple[int, int] | None:
    """Return the width and height of a WebP or JPEG XL, which take their memory on opening; None for other images.

    Raises
    ------
    DecodeError
        If the header is cut short.
    """
    file.seek(0)
    prefix = file.read(30)
    return jpegxl.header_of(file).size if jpegxl.accepts(prefix) else _canvas_of_webp(prefix)


def _canvas_of_webp(prefix: bytes) -> tuple[int, int] | None:
    """See "WebP Container Specification" (VP8X), RFC 6386 (VP8), and "WebP Lossless Bitstream" (VP8L)."""
    if prefix[:4] != b"RIFF" or prefix[8:12] != b"WEBP" or len(prefix) < 30:
        return None
    kind = prefix[12:16]
    if kind == b"VP8X":
        return int.from_bytes(prefix[24:27], "little") + 1, int.from_bytes(prefix[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(prefix[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack("<HH", prefix[26:30])
    return width & 0x3FFF, height & 0x3FFF


def _open_png(file: BinaryIO, notes: Notes) -> ImageFile:
    picture, info = png_picture(file, notes)
    image = PngImageFile(picture)
    image.info.update(info)
    return image


def _open_jpeg(file: BinaryIO, notes: Notes) -> ImageFile:  # noqa: ARG001
    picture, info = jpeg_picture(file)
    image = JpegImageFile(picture)
    image.info.update(info)
    return image


def _open_tiff(file: BinaryIO, notes: Notes) -> ImageFile:  # noqa: ARG001
    require_little_endian(file.read(4))
    file.seek(0)
    return Tiff(file)


def _open_heic(file: BinaryIO, notes: Notes) -> ImageFile:  # noqa: ARG001
    HEIC.require()
    from pillow_heif import HeifImageFile  # does not register itself with Pillow

    image: ImageFile = HeifImageFile(file)
    image.info.clear()  # the orientation in it has been applied, or does not count
    return image


def _open_jpeg_xl(file: BinaryIO, notes: Notes) -> Image.Image:
    picture = jpegxl.decoded(file)
    return _open_jpeg(BytesIO(picture), notes) if isinstance(picture, bytes) else picture


def _plain(plugin: Callable[[Any], ImageFile]) -> Opener:
    """Open as Pillow does, for formats whose metadata nothing depends on."""
    return lambda file, notes: plugin(file)  # noqa: ARG005


def _hiding(plugin: Callable[[Any], ImageFile], box: bytes, hidden: bytes) -> Opener:
    """Open as Pillow does, and if that fails, once more with a box of metadata renamed so that it is ignored."""

    def opened(file: BinaryIO, notes: Notes) -> ImageFile:
        try:
            return plugin(file)
        except DecodeError:
            raise
        except Exception:
            file.seek(0)
            data = file.read()
            without = re.sub(box, hidden, data, count=1, flags=re.DOTALL)
            if without == data:
                raise
            image = plugin(BytesIO(without))
            notes.add("its metadata is damaged and was ignored")
            return image

    return opened


# Of Pillow's forty formats, those that photographs come in; the others only widen what a hostile file can reach.
# The orientation of an AVIF or a HEIC is a property of its own (irot, imir); its EXIF does not count.
OPENERS: dict[str, Opener] = {
    "JPEG": _open_jpeg,
    "PNG": _open_png,
    "BMP": _plain(BmpImageFile),
    "GIF": _plain(GifImageFile),
    "PPM": _plain(PpmImageFile),
    WebPImagePlugin.WebPImageFile.format: _plain(WebPImagePlugin.WebPImageFile),
    TiffImagePlugin.TiffImageFile.format: _open_tiff,
    Jpeg2000.format: _hiding(Jpeg2000, rb"\A((?:(?!jp2c).)*?)res ", rb"\1free"),
    "HEIC": _open_heic,
    "JPEG XL": _open_jpeg_xl,
    AvifImagePlugin.AvifImageFile.format: _hiding(AvifImagePlugin.AvifImageFile, rb"(infe\x02.{7})Exif", rb"\1free"),
}

# How the formats that Pillow does not know are recognised.
ACCEPTS: dict[str, Callable[[bytes], bool]] = {"HEIC": is_heic, "JPEG XL": jpegxl.accepts}
