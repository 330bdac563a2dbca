# The errors a caller can get: each has one sentence with the cause, and a hint with the remedy.
"""Errors of featx, and the exit status that the command line gives for each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featx.values import Item


# What to do when there is not enough disk space, or memory.
ROOM = "Free some space or repair the disk, and run the same command to resume"
LESS = "Use a smaller --image-size, a smaller --batch-size or fewer --workers"


class FeatxError(Exception):
    """A failure that the user can act on.

    Attributes
    ----------
    message : str
        One sentence: what went wrong.
    hint : str
        One sentence: what to do about it; may be empty.
    exit_status : int
        What the command line exits with.
    """

    exit_status = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message if not hint else f"{message}. {hint}")
        self.message = message
        self.hint = hint


class UsageError(FeatxError):
    """The request itself cannot be understood: a malformed option, an input that does not exist."""

    exit_status = 2


class ModelError(FeatxError):
    """The model is unknown, or cannot give what was asked of it."""


class WeightsError(FeatxError):
    """The weights are not available, or must not be used."""


class UnavailableError(WeightsError):
    """Pretrained weights are in no cache and cannot be fetched; callers with an alternative add it to the hint."""


class OutputError(FeatxError):
    """The output folder cannot be used, or holds something else."""


class BusyError(OutputError):
    """Another run holds the output folder."""

    exit_status = 11


class StoreError(OutputError):
    """An object store that does not do what it was asked to, after all tries of its library."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint or "Check the URL, the credentials and the network, and run the command again")


class DecodeError(Exception):
    """An image that featx refuses to process; the message is the reason."""


class UnreadableError(Exception):
    """An image that gives no pixels.

    Attributes
    ----------
    stage : str
        ``read`` or ``decode``.
    reason : str
        One line, without the path.
    sha256 : str
        Of the file; empty where nobody asked for it.
    messages : str
        What libraries wrote while it was decoded, where that is known.
    """

    def __init__(self, stage: str, reason: str, sha256: str = "", messages: str = "") -> None:
        super().__init__(reason)
        self.stage, self.reason, self.sha256, self.messages = stage, reason, sha256, messages


class StuckError(Exception):
    """An image hangs in its decoder, which cannot be stopped from outside; its thread is lost.

    Attributes
    ----------
    item : featx.values.Item
        The image.
    """

    def __init__(self, item: Item) -> None:
        super().__init__("took longer than allowed (--time-limit)")
        self.item = item


class StoppedError(FeatxError):
    """The run was interrupted, by a signal of that number; what was done is kept."""

    def __init__(self, message: str, hint: str = "", signal: int = 2) -> None:
        super().__init__(message, hint)
        self.exit_status = 128 + signal


def first_line(error: BaseException) -> str:
    """The first sentence in the first line of a library's error, or its class name if it has no message."""
    text = str(error).strip() or type(error).__name__
    return re.split(r"(?<=[a-z)])[.] (?=[A-Z])", text.splitlines()[0])[0].rstrip(".:")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory: a GPU's, torch's on CPUs, OpenVINO's, Python's.

    On processors torch raises a plain RuntimeError, recognisable only by its text.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = ("can't allocate memory", "Cannot allocate memory", "bad_alloc", "bad allocation", "out of memory")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in words)


@contextmanager
def enough_memory(refusal: str, hint: str = LESS) -> Iterator[None]:
    """Say in one line that there was not enough memory.

    Raises
    ------
    ModelError
        If there was not.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ModelError(refusal, hint) from error
