# TIFF: of its countless layouts, those that Pillow is known to decode correctly; the others are refused by name.
"""TIFF files as Pillow's plugin reads them, without what it does to them silently.

The tests compare every layout with a reference; those that Pillow gets wrong are decoded another way here, or refused.
"""

from __future__ import annotations

from typing import Any

from PIL import Image, ImagePalette
from PIL.TiffImagePlugin import TiffImageFile

from featx.errors import DecodeError

# Tags, photometric interpretations and sample formats (TIFF 6.0).
BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, ORIENTATION, SAMPLES = 258, 259, 262, 266, 274, 277
PLANAR, PREDICTOR, COLOUR_MAP, TILE_WIDTH, TILE_LENGTH, INK_SET, EXTRA, SAMPLE_FORMAT = (
    284,
    317,
    320,
    322,
    323,
    332,
    338,
    339,
)
SUBSAMPLING, REFERENCE = 530, 532
WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE, SEPARATED, YCBCR, CIELAB = 0, 1, 3, 5, 6, 8
UNSIGNED, SIGNED = 1, 2

# The reference black and white of JPEG's YCbCr, the only one that Pillow knows.
FULL_RANGE = (0, 255, 128, 255, 128, 255)

# Not needed here, and a problem where they are of the wrong type: resolution, its unit, colour profile.
UNUSED = (282, 283, 296, 34675)

# Compressions: none, and any that has Pillow hand the whole file to libtiff, which finds out the real one by itself.
UNCOMPRESSED, BY_LIBTIFF = 1, 8

COLOURS = {
    0: "grey (white is zero)",
    1: "grey",
    2: "RGB",
    3: "palette",
    4: "mask",
    5: "CMYK",
    6: "YCbCr",
    8: "CIELab",
    9: "ICCLab",
    10: "ITULab",
    32803: "colour filter array",
    32844: "LogL",
    32845: "LogLuv",
    34892: "linear raw",
}
FORMATS = {2: "signed ", 3: "floating-point ", 5: "complex ", 6: "complex "}


class Tiff(TiffImageFile):
    """A TIFF file whose pixels come as they are stored; its orientation is left to the caller.

    Attributes
    ----------
    inverted : bool
        Whether zero is white in samples of 12 or 16 bits; Pillow inverts all others by itself.
    area : int
        Pixels of the image, or of one tile, where that is larger.

    Raises
    ------
    DecodeError
        For layouts that are not supported.
    """

    def _setup(self) -> None:
        """Pillow's own method, called for each page once its tags are known."""
        tags: Any = self.tag_v2
        for tag in (*UNUSED, ORIENTATION):
            del tags[tag]
        reason = _not_right(tags)
        if reason:
            raise DecodeError(reason)
        self.inverted = tags.get(PHOTOMETRIC, WHITE_IS_ZERO) == WHITE_IS_ZERO and _bits(tags)[0] in (12, 16)
        if self.inverted:
            tags[PHOTOMETRIC] = BLACK_IS_ZERO
        if tags.get(COMPRESSION, UNCOMPRESSED) == UNCOMPRESSED and _is_wrong_uncompressed(tags):
            tags[COMPRESSION] = BY_LIBTIFF
        try:
            super()._setup()
        except (SyntaxError, KeyError) as error:
            if self.inverted:
                tags[PHOTOMETRIC] = WHITE_IS_ZERO
            raise DecodeError(_not_supported(tags)) from error
        self.area = max(self.width * self.height, tags.get(TILE_WIDTH, 1) * tags.get(TILE_LENGTH, 1))
        colour_map = tags.get(COLOUR_MAP, ())
        if self.palette and max(colour_map) < 256:  # written by software that took its 16 bits for 8, as libtiff knows
            self.palette = ImagePalette.raw("RGB;L", bytes(colour_map))

    def load_end(self) -> None:
        """Do nothing; Pillow would read all EXIF here, and turn the image."""


def depth_of(image: Image.Image) -> tuple[int, bool]:
    """Return the bits of a sample, and whether zero is white, of 16-bit pixels; Pillow leaves both to its callers.

    Returns
    -------
    bits : int
        16, or what a TIFF file says (12-bit cameras and scanners).
    inverted : bool
        Whether a TIFF file says so.
    """
    tags: Any = getattr(image, "tag_v2", None)
    if tags is None:
        return 16, False
    inverted = image.inverted if isinstance(image, Tiff) else tags.get(PHOTOMETRIC, WHITE_IS_ZERO) == WHITE_IS_ZERO
    return int(_bits(tags)[0]), inverted


def require_little_endian(prefix: bytes) -> None:
    """Refuse the one kind of header that Pillow takes for another.

    Raises
    ------
    DecodeError
        For big-endian BigTIFF.
    """
    if prefix.startswith(b"MM\0\x2b"):
        raise DecodeError("big-endian BigTIFF is not supported; convert it to TIFF or to little-endian BigTIFF")


def _bits(tags: Any) -> tuple[int, ...]:
    bits = tags.get(BITS, (1,))
    return bits if isinstance(bits, tuple) else (bits,)


def _not_right(tags: Any) -> str:
    """Say what Pillow would silently decode wrongly."""
    photometric, extra = tags.get(PHOTOMETRIC, 0), tags.get(EXTRA, ())
    if SIGNED in tags.get(SAMPLE_FORMAT, ()) and max(_bits(tags)) <= 8:
        return _not_supported(tags)
    if tags.get(COMPRESSION, UNCOMPRESSED) == UNCOMPRESSED and tags.get(PREDICTOR, 1) != 1:
        return "TIFF with a predictor, but not compressed, is not supported; convert it to PNG"
    wrong = photometric == SEPARATED and tags.get(INK_SET, 1) != 1
    if tags.get(PLANAR, 1) == 2:
        grey = photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE)
        wrong |= photometric == CIELAB or (any(extra) and (grey or len(extra) > 1))
    wrong |= photometric == YCBCR and bool(extra)
    return _not_supported(tags) if wrong else ""


def _is_wrong_uncompressed(tags: Any) -> bool:
    """Whether Pillow's own reading of uncompressed files fails, or gives noise, where libtiff is correct."""
    unusual = tags.get(PHOTOMETRIC, 0) == YCBCR and (
        tags.get(SUBSAMPLING, (2, 2)) != (1, 1) or tags.get(REFERENCE, FULL_RANGE) != FULL_RANGE
    )
    return bool(unusual or tags.get(PLANAR, 1) == 2 or tags.get(FILL_ORDER, 1) == 2)


def _not_supported(tags: Any) -> str:
    """Name a layout, and what to do about it."""
    photometric = tags.get(PHOTOMETRIC, 0)
    bits, formats, extra = _bits(tags), tags.get(SAMPLE_FORMAT, (UNSIGNED,)), tags.get(EXTRA, ())
    depth = "/".join(str(each) for each in dict.fromkeys(bits))
    colour = COLOURS.get(photometric, f"photometric {photometric}")
    if photometric == SEPARATED and tags.get(INK_SET, 1) != 1:
        colour = "inks other than CMYK"
    more = f" with {len(extra)} extra sample{'s' * (len(extra) > 1)}" if extra else ""
    planes = " in separate planes" if tags.get(PLANAR, 1) == 2 else ""
    compression = tags.get(COMPRESSION, UNCOMPRESSED)
    packed = f" (compression {compression}, {tags.get(SAMPLES, 1)} samples a pixel)"
    kind = FORMATS.get(max(formats), "")
    way_out = (
        "convert it to 8-bit RGB"
        if set(bits) <= {8, 16} and not kind
        else f"convert it to {kind and 'unsigned '}8 or 16 bits"
    )
    return f"{depth}-bit {kind}{colour} TIFF{more}{planes} is not supported{packed}; {way_out}"
