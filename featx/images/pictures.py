# Pictures: one photo, upright and in RGB, to be looked at; or one line that says why it cannot be read.
"""Decoding without fitting, and thus without torch; whatever is wrong with an image becomes one reason."""

from __future__ import annotations

import re
import struct
import zlib

from PIL import Image

from featx.errors import UnreadableError
from featx.images import decoding, locators
from featx.options import Limits

# What goes wrong inside a decoder that runs out of a file's bytes, or into senseless ones; the words mean nothing.
INNER = (struct.error, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, zlib.error)
VAGUE = re.compile(
    "decoder error|not identified by this driver|cannot load this image|could not create decoder|Unable to seek"
    "|Expected to read|Invalid input:|Decoder plugin generated|Generic Error|Invalid argument|invalid literal|b['\"]"
)


def picture(locator: str, limits: Limits) -> Image.Image:
    """Read and decode an image, upright and in RGB, to be looked at.

    Raises
    ------
    UnreadableError
        As `place` does.
    """
    try:
        with locators.opened(locator, limits) as file:
            return decoding.decode(file, limits.max_pixels)[0]
    except UnreadableError:
        raise
    except Exception as error:
        raise UnreadableError("decode", reason_of(error, locator)) from error


def thumbnail(locator: str, side: int) -> Image.Image | None:
    """Read an image, upright, as large as fits into a square of so many pixels; None if it is gone or unreadable."""
    limits = Limits()
    try:
        with locators.opened(locator, limits) as file, decoding.opened(file, limits.max_pixels) as undecoded:
            image = undecoded.reduced(side).rgb()
    except Exception:  # noqa: BLE001 - whatever is wrong, there is nothing to show
        return None
    image.thumbnail((side, side))
    return image


def reason_of(error: Exception, locator: str) -> str:
    """Say why an image could not be read, in one line that is meaningful to the file's owner."""
    inner = error.__cause__ if isinstance(error, SyntaxError) else error
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    said = one_line(error, locator)
    return "the file is damaged" if isinstance(inner, INNER) or VAGUE.match(said) else said


def one_line(error: BaseException, locator: str) -> str:
    """Return what an error says, without the locator, which the image's line names already."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    line = text.splitlines()[0].replace(f"'{locator}'", "").replace(locator, "").strip(" :.")
    return line or type(error).__name__
