# Decoding one image: from a file to the pixels of the model's input, or to one line that says why not.
"""What becomes of an image file, whatever is in it."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import struct
import zlib
from contextlib import nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from featx.images import fitting
from featx.images.frame import Frame
from featx.options import Limits

# What goes wrong inside a decoder that runs out of a file's bytes, or into senseless ones; the words mean nothing.
INNER = (struct.error, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, zlib.error)
VAGUE = re.compile(
    "decoder error|not identified by this driver|cannot load this image|could not create decoder|Unable to seek"
    "|Expected to read|Invalid argument|invalid literal|b['\"]"
)


@dataclass(frozen=True, slots=True)
class Placed:
    """An image as the model is fed with it.

    Attributes
    ----------
    pixels : ndarray
        (H, W, 3) uint8, of the model's input size.
    frame : Frame
        Where the original lies in it.
    sha256 : str
        Of the file; empty where nobody asked for it.
    messages : str
        What of its metadata was ignored, and what libraries had to say while it was decoded, where that can be told.
    """

    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    frame: Frame
    sha256: str = ""
    messages: str = ""


class UnreadableError(Exception):
    """An image that gives no pixels.

    Attributes
    ----------
    stage : str
        ``read`` or ``decode``.
    reason : str
        One line, without the path.
    sha256, messages : str
        As `Placed` has them.
    """

    def __init__(self, stage: str, reason: str, sha256: str = "", messages: str = "") -> None:
        super().__init__(reason)
        self.stage, self.reason, self.sha256, self.messages = stage, reason, sha256, messages


def place(
    preprocessor: fitting.Preprocessor,
    path: str,
    limits: Limits,
    *,
    hashed: bool = False,
    alone: fitting.Alone = nullcontext,
) -> Placed:
    """Read, decode, resize and crop an image.

    Raises
    ------
    UnreadableError
        For whatever a file can trip a decoder over: they raise far more than OSError.
    """
    sha256 = ""
    try:
        _require_file(os.stat(path), limits)  # noqa: PTH116
        file: Path | BinaryIO = Path(path)
        if hashed:
            data = Path(path).read_bytes()
            sha256, file = hashlib.sha256(data).hexdigest(), BytesIO(data)
        with fitting.opened(file, limits.pixels, alone, preprocessor.largest) as source:
            image, frame = preprocessor.place(source.rgb(), source.orientation, limits.pixels)
        return Placed(np.array(image), frame, sha256, str(source.notes))
    except UnreadableError:
        raise
    except Exception as error:
        # A place in the file that a damaged one names, and that there is not, is no fault of the disk.
        stage = "read" if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL) else "decode"
        raise UnreadableError(stage, reason_of(error, path), sha256) from error


def picture(path: str, limits: Limits) -> Image.Image:
    """Read and decode an image, upright and in RGB, to be looked at.

    Raises
    ------
    UnreadableError
        As `place` does.
    """
    try:
        _require_file(os.stat(path), limits)  # noqa: PTH116
        return fitting.decode(Path(path), limits.pixels)[0]
    except UnreadableError:
        raise
    except Exception as error:
        raise UnreadableError("decode", reason_of(error, path)) from error


def reason_of(error: Exception, path: str) -> str:
    """Say why an image could not be read, in one line that means something to who has the file."""
    inner = error.__cause__ if isinstance(error, SyntaxError) else error
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    said = one_line(error, path)
    return "the file is damaged" if isinstance(inner, INNER) or VAGUE.match(said) else said


def one_line(error: BaseException, path: str) -> str:
    """Return what an error says, without the path, which the image's line names already."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    line = text.splitlines()[0].replace(f"'{path}'", "").replace(path, "").strip(" :.")
    return line or type(error).__name__


def _require_file(status: os.stat_result, limits: Limits) -> None:
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device could take for ever
        raise UnreadableError("read", "not a file")
    if status.st_size > limits.bytes:
        raise UnreadableError(
            "read", f"{status.st_size / 1e6:.4g} MB are more than the {limits.bytes / 1e6:.4g} allowed (--max-bytes)"
        )
