# Colours: from any mode, depth and transparency to 8-bit RGB on white, without several copies of the picture.
"""What Pillow has decoded, as 8-bit RGB."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from featx.errors import DecodeError
from featx.images.tiff import depth_of

WHITE = (255, 255, 255, 255)

# Pixels that are converted at a time.
BAND = 1 << 20

Array = np.ndarray[Any, Any]


def loaded(image: Image.Image) -> Image.Image:
    """Decode an image, and bring it to 8 bits a sample; a colour that stands for transparent becomes white.

    Raises
    ------
    DecodeError
        If its pixels have no agreed way to 8 bits.
    Exception
        Whatever Pillow raises for a broken file.
    """
    transparent = image.info.get("transparency") if image.mode in ("1", "L", "RGB", "I;16") else None
    rawmode = _rawmode(image)
    low = _low_bytes(image) if transparent is not None and rawmode == "RGB;16B" else None
    image.load()  # the whole first picture, so that a truncated file fails here and not half-way
    if image.mode == "F":
        raise DecodeError("floating-point pixels have no agreed range; convert it to 8 or 16 bits")
    if image.mode == "I" and image.format not in ("PPM", "PNG"):  # for these two white is 65535
        raise DecodeError("32-bit or signed pixels have no agreed range; convert it to 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _to_8_bit(image, transparent)
    if transparent is None:
        return image
    if image.mode == "RGB":
        if max(transparent) > 255 and not rawmode:
            raise DecodeError("its transparent colour has 16 bits, but its pixels only 8; give featx the file instead")
        return _whitened(image, low, transparent)
    return _whitened_grey(image, rawmode, transparent)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert what `loaded` returned; transparency is laid on white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    return _by_bands(image, "RGB", _on_white) if image.has_transparency_data else image.convert("RGB")


def _by_bands(image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert some rows at a time, so that only the picture and the result are in memory in full."""
    if image.width * image.height <= BAND:
        return convert(image)
    result = Image.new(mode, image.size)
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        result.paste(convert(image.crop(box)), box)
    return result


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # Pillow has no direct way
        image = image.convert("LA")
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, WHITE), layer).convert("RGB")


def _to_8_bit(image: Image.Image, transparent: Any) -> Image.Image:
    """Scale by the bit depth: full scale becomes 255. `convert` would cut off everything above 255."""
    bits, inverted = depth_of(image)
    full = (1 << bits) - 1
    scaled = (np.minimum(np.arange(1 << 16, dtype=np.uint32), full) * 255 + full // 2) // full
    if inverted:
        scaled = 255 - scaled
    if transparent is not None:
        scaled[int(transparent)] = 255
    table = scaled.astype(np.uint8)
    return _by_bands(image, "L", lambda band: Image.fromarray(table[np.clip(np.asarray(band), 0, 65535)]))


def _rawmode(image: Image.Image) -> str:
    """Return how an undecoded PNG's samples are stored, in Pillow's terms; "" for all else."""
    tile = image.tile if isinstance(image, PngImageFile) else ()
    return str(tile[0][3]) if tile else ""


def _low_bytes(image: Any) -> Image.Image:
    """Decode the lower halves of 16-bit samples, of which Pillow keeps the upper ones."""
    image.fp.seek(0)
    twin = PngImageFile(image.fp)
    twin.tile = [twin.tile[0]._replace(args="RGB;16L")]
    twin.load()
    return twin


def _whitened(image: Image.Image, low: Image.Image | None, transparent: Any) -> Image.Image:
    """Make one colour white; of an 8-bit file's colour the lower bytes count (PNG, "tRNS")."""
    upper = [value >> 8 if low else value & 255 for value in transparent]
    lower = [value & 255 for value in transparent]
    result = Image.new("RGB", image.size)
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        pixels = np.array(image.crop(box))
        matches = (pixels == upper).all(-1)
        if low:
            matches &= (np.asarray(low.crop(box)) == lower).all(-1)
        pixels[matches] = 255
        result.paste(Image.fromarray(pixels), box)
    return result


def _whitened_grey(image: Image.Image, rawmode: str, transparent: Any) -> Image.Image:
    """Make one shade white, which a file of 2 or 4 bits names by its own depth."""
    bits = {"L;2": 2, "L;4": 4}.get(rawmode, 8)
    shade = (int(transparent) & (1 << bits) - 1) * 255 // ((1 << bits) - 1)
    grey = image if image.mode == "L" else image.convert("L")
    whitened = grey.point([255 if value == shade else value for value in range(256)])
    whitened.info.pop("transparency", None)
    return whitened
