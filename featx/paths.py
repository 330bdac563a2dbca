# Paths: from a path to text that any JSON reader takes, and back.
r"""What images are called.

A key is text that any JSON reader takes; bytes of a path that are not UTF-8 are written ``\xe9``, and a backslash that
would read as such an escape is written ``\x5c``. So every path has a text of its own, and the way back.
"""

from __future__ import annotations

import os
import re
import unicodedata

from featx.errors import FeatxError, UsageError

_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")
_URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_LIKE_AN_ESCAPE = re.compile(r"\\(?=x[0-9a-f]{2})")


def to_text(path: str) -> str:
    """Write a path, in which Python keeps undecodable bytes as lone surrogates, as text; `to_path` undoes it."""
    if path.isascii() and "\\" not in path:
        return path
    return os.fsencode(_LIKE_AN_ESCAPE.sub(r"\\x5c", path)).decode("utf-8", "backslashreplace")


def to_path(text: str) -> str:
    """Undo `to_text`."""
    if "\\x" not in text:
        return text
    return os.fsdecode(_ESCAPED.sub(lambda found: bytes.fromhex(found[1].decode()), text.encode()))


def here() -> str:
    """Return the current folder.

    Raises
    ------
    FeatxError
        If it was removed.
    """
    try:
        return os.getcwd()  # noqa: PTH109 - text, as all paths of a million images
    except OSError as error:
        raise FeatxError(
            "The current folder no longer exists", "Change to another folder, and run the command again"
        ) from error


def absolute(path: str) -> str:
    """Make a path absolute and normalised; links stay links.

    Raises
    ------
    FeatxError
        If that takes the current folder, and it was removed.
    """
    whole = os.path.normpath(path if path.startswith("/") else f"{here()}/{path}")
    return whole[1:] if whole.startswith("//") else whole


def expanded(path: str) -> str:
    """Expand ``~`` and ``~name`` to a home folder, unless a file of that name exists."""
    return path if os.path.lexists(path) else os.path.expanduser(path)  # noqa: PTH111 - a Path raises


def fold(name: str) -> str:
    """Make names equal that some file system takes for the same: those that differ in case or in Unicode's form."""
    if name.isascii():
        lower = name.lower()
        return name if lower == name else lower  # not the same text twice, a million times
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def path_text(path: str) -> str:
    """Write an image's path as the manifest has it: whole, as text."""
    return to_text(path if path.startswith("/") else f"{here()}/{path}")


def refuse_url(text: str) -> None:
    """Refuse a URL given in place of a file or folder.

    Raises
    ------
    UsageError
        With what to do instead.
    """
    if found := _URL.match(text):
        hint = "Give its path" if found[1].lower() == "file" else "Download it first, and give its path"
        raise UsageError(f"featx reads files, and {text} is a URL", hint)
