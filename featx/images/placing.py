# Placing one image: from its locator to the pixels of the model's input, or to one line that says why not.
"""Decoding and fitting together; whatever is wrong with an image becomes one reason."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np

from featx.errors import UnreadableError
from featx.images import decoding, locators, windows
from featx.images.fitting import Native, Preprocessor
from featx.images.frame import Frame
from featx.images.pictures import reason_of
from featx.images.tiles import Tiling
from featx.options import Limits
from featx.values import Stat


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


@dataclass(frozen=True, slots=True)
class Large:
    """An image that is to be read and placed tile by tile.

    Attributes
    ----------
    frame, sha256, messages
        As in `Placed`.
    as_a_whole : int
        Bytes that it takes because it can only be decoded as a whole.
    """

    frame: Frame
    sha256: str
    messages: str
    as_a_whole: int


def place(
    preprocessor: Preprocessor,
    locator: str,
    limits: Limits,
    *,
    hashed: bool = False,
    alone: decoding.Alone = nullcontext,
    data: bytes | None = None,
    going_on: Callable[[], None] = lambda: None,
    known: Stat | None = None,
) -> Placed:
    """Read, decode, resize and crop an image.

    Parameters
    ----------
    preprocessor : Preprocessor
        Fits it to the model's input.
    locator : str
        Where it is.
    limits : Limits
        Limits for one image.
    hashed : bool
        Whether its sha256 is wanted.
    alone : callable
        See `featx.images.decoding.opened`.
    data : bytes or None
        Its bytes, if somebody has read them already.
    going_on, known : callable, Stat or None
        See `featx.images.locators.opened`.

    Raises
    ------
    UnreadableError
        For whatever a file can trip a decoder over: they raise far more than OSError.
    """
    sha256 = ""
    try:
        with locators.opened(locator, limits, going_on, known) if data is None else BytesIO(data) as file:
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
        raise unreadable(error, locator, sha256) from error


def place_in_tiles(
    preprocessor: Native,
    tiling: Tiling,
    locator: str,
    limits: Limits,
    *,
    hashed: bool = False,
    alone: decoding.Alone = nullcontext,
    going_on: Callable[[], None] = lambda: None,
    known: Stat | None = None,
) -> Placed | Large:
    """Place an image that is a single tile; of a larger one, only the header is read.

    Parameters and errors are those of `place`; `tiling` says how images are cut.
    """
    sha256 = ""
    try:
        with locators.opened(locator, limits, going_on, known) as file:
            if hashed:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
                file.seek(0)
            with windows.opened(file, locator, limits, alone, tiling.mpp) as source:
                frame = preprocessor.framed(source.original, source.size, source.orientation)
                if tiling.cuts(frame.input[::-1]):
                    return Large(frame, sha256, str(source.notes), source.as_a_whole)
                pixels = preprocessor.section(frame, source.size, slice(None), slice(None), source.read)
                return Placed(pixels, frame, sha256, str(source.notes))
    except UnreadableError:
        raise
    except Exception as error:
        raise unreadable(error, locator, sha256) from error


def read_elsewhere(
    locator: str, limits: Limits, going_on: Callable[[], None] = lambda: None, known: Stat | None = None
) -> bytes | None:
    """Read a remote image or an archive's member for another process to decode; None for a file, which that can open.

    Raises
    ------
    UnreadableError
        If it cannot be read.
    """
    try:
        return locators.read(locator, limits, going_on, known)
    except UnreadableError:
        raise
    except Exception as error:
        raise unreadable(error, locator) from error


def unreadable(error: Exception, locator: str, sha256: str = "") -> UnreadableError:
    """Say why an image could not be read, and whether that is the file's fault or the disk's."""
    missing = isinstance(error, FileNotFoundError)
    # A position that a damaged file names, and does not have, is not the disk's fault.
    of_disk = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
    return UnreadableError("read" if missing or of_disk else "decode", reason_of(error, locator), sha256)
