# Paths: from a path to text that any JSON reader takes, and back.
r"""What images are called.

A key is text that any JSON reader takes; bytes of a path that are not UTF-8 are written ``\xe9``, and a backslash that
would read as such an escape is written ``\x5c``. So every path has a text of its own, and the way back.
"""

from __future__ import annotations

import os
import re
import unicodedata
from urllib.parse import unquote

from featx.errors import FeatxError, UsageError

_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")
_URL = re.compile(r"([a-z][a-z0-9+.-]+)://([^/]*)", re.IGNORECASE)
_MEMBER = re.compile(
    r"(https?://[^?#]*?\.(?:tar|tar\.gz|tgz|tar\.bz2|tar\.xz|zip|parquet))(?:[?#].*?)?(::.*)", re.IGNORECASE | re.DOTALL
)
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
    """Make a path absolute and normalised; links stay links, and URLs as they are.

    Raises
    ------
    FeatxError
        If that takes the current folder, and it was removed.
    """
    if is_url(path):
        return path
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
    """Write an image's path as the manifest has it: whole, as text; a URL without its query, which may be a secret."""
    if is_url(path):
        return to_text(without_query(path))
    return to_text(path if path.startswith("/") else f"{here()}/{path}")


def is_url(path: str) -> bool:
    """Whether a path is a URL."""
    return "://" in path and _URL.match(path) is not None


def without_query(url: str) -> str:
    """Return a URL without its query and fragment, which only the web's have; a member's name behind it stays."""
    if not is_web(url):
        return url
    if found := _MEMBER.fullmatch(url):
        return f"{found[1]}{found[2]}"
    return re.split("[?#]", url, maxsplit=1)[0]


def is_web(url: str) -> bool:
    """Whether a URL is of the web, where queries have a meaning."""
    return url[:8].lower().startswith(("http://", "https://"))


def unquoted(path: str) -> str:
    """Undo the escapes of the web in a path, except where they hide a slash or a way up."""
    parts = ((part, unquote(part)) for part in path.split("/"))
    return "/".join(part if "/" in plain or "\0" in plain or plain in (".", "..") else plain for part, plain in parts)


def protocol_of(url: str) -> str:
    """Return what stands before ``://``, in lower case."""
    return url.partition("://")[0].lower()


def require_plain_url(url: str) -> None:
    """Refuse a URL with a password in it, which would be written down, one of nothing, and one of a local file.

    Raises
    ------
    UsageError
        With what to do instead.
    """
    found = _URL.match(url)
    if found and found[1].lower() in ("file", "local"):
        raise UsageError(f"{url} is the URL of a local file", "Give its path")
    if not url.partition("://")[2].strip("/"):
        raise UsageError(f"{url} names no bucket or server", "Give a whole URL, such as s3://bucket/photos")
    user, at, host = found[2].rpartition("@") if found else ("", "", "")
    if at and (":" in user or is_web(url)):
        raise UsageError(
            f"{protocol_of(url)}://***@{host} has credentials in it, which would be written down",
            "Leave them out; fsspec takes them from the environment and from ~/.config/fsspec",
        )
