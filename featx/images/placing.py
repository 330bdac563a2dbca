# Placing one image: from its locator to the pixels of the model's input, or to one line that says why not.
"""Decoding and fitting together; whatever is wrong with an image becomes one reason."""

from __future__ import annotations

import errno
import hashlib
import re
import struct
import zlib
from contextlib import nullcontext
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from featx.errors import UnreadableError
from featx.images import decoding, locators
from featx.images.fitting import Preprocessor
from featx.images.frame import Frame
from featx.options import Limits

# What goes wrong inside a decoder that runs out of a file's bytes, or into senseless ones; the words mean nothing.
INNER = (struct.error, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, zlib.error)
VAGUE = re.compile(
    "decoder error|not identified by this driver|cannot load this image|could not create decoder|Unable to seek"
    "|Expected to read|Invalid input:|Decoder plugin generated|Generic Error|Invalid argument|invalid literal|b['\"]"
)


@dataclass(frozen=True, slots=True)
class Placed:
    """An image as it is fed to the model.

    Attributes
    ----------
    pixels : ndarray
        (H, W, 3) uint8, of the model's input size.
    frame : Frame
        Where the original lies in it.
    sha256 : str
        Of the file; empty where nobody asked for it.
    messages : str
        What of its metadata was ignored, and what libraries wrote while it was decoded, where that is known.
    """

    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    frame: Frame
    sha256: str = ""
    messages: str = ""


def place(
    preprocessor: Preprocessor,
    locator: str,
    limits: Limits,
    *,
    hashed: bool = False,
    alone: decoding.Alone = nullcontext,
) -> Placed:
    """Read, decode, resize and crop an image.

    Raises
    ------
    UnreadableError
        For whatever a file can trip a decoder over: they raise far more than OSError.
    """
    sha256 = ""
    try:
        with locators.opened(locator, limits) as file:
            stream: BinaryIO = file
            if hashed:
                data = file.read()
                sha256, stream = hashlib.sha256(data).hexdigest(), BytesIO(data)
            with decoding.opened(stream, limits.max_pixels, alone, preprocessor.largest) as undecoded:
                image, frame = preprocessor.place(undecoded.rgb(), undecoded.orientation, limits.max_pixels)
        return Placed(np.array(image), frame, sha256, str(undecoded.notes))
    except UnreadableError:
        raise
    except Exception as error:
        # A position that a damaged file names, and does not have, is not the disk's fault.
        stage = "read" if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL) else "decode"
        raise UnreadableError(stage, reason_of(error, locator), sha256) from error


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
