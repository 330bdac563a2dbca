# Remote files: what a URL refers to, by fsspec: its size and version, its bytes, and what is in a folder.
"""Reading from buckets and web servers.

Whatever goes wrong is a FileNotFoundError, or an `UnreadableError` whose reason names
neither the URL's query nor anything else that could be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from io import SEEK_CUR, SEEK_END, BufferedReader, RawIOBase
from typing import Any, BinaryIO, TypeVar

from featx.errors import UnreadableError, first_line
from featx.filesystems import file_system, version_in
from featx.paths import is_web, protocol_of
from featx.values import Stat

Result = TypeVar("Result")

# Bytes that one request asks for: of an image, and of an archive that is looked through.
PIECE, BLOCK = 1 << 25, 1 << 22

# How often a web server is asked for the same thing; the libraries of buckets ask again by themselves.
ATTEMPTS = 3

# Statuses of web servers: not there, not allowed, and all that asking again does not change.
MISSING, DENIED = (404, 410), (401, 403, 407)
REFUSALS = (*MISSING, *DENIED, 400, 405, 406, 414, 416, 451)

NO_ACCESS, NO_PARTS = "access denied", "its server does not support range requests"

# What the libraries call an object's time.
TIMES = ("LastModified", "last_modified", "mtime", "updated", "Last-Modified", "created")


def require(url: str) -> None:
    """Make sure that the library for a URL is there.

    Raises
    ------
    FeatxError
        If it is not, or its protocol is unknown.
    """
    file_system(url)


def stat_of(url: str) -> Stat:
    """Look up a file's size, time and version.

    Raises
    ------
    FileNotFoundError, UnreadableError
        If it is not there, or cannot be looked up.
    """
    return _stat_in(_info(url))


def is_folder(url: str) -> bool:
    """Whether a URL is that of a folder, or else of a file; one of the web is a folder's if it ends in a slash.

    Errors are those of `stat_of`.
    """
    return (is_web(url) and url.endswith("/")) or _info(url)["type"] == "directory"


def entries(folder: str) -> Iterator[tuple[str, bool, Stat | None]]:
    """List a folder: the names in it, whether each is a folder, and what is known of a file.

    Raises
    ------
    FileNotFoundError, UnreadableError
        If there is none, or it cannot be listed.
    """
    place = f"{folder}/"
    found = _tried(folder, lambda system, url: system.ls(f"{url}/" if is_web(url) else url, detail=True))
    own = folder.partition("://")[2]
    for info in found:
        name = str(info["name"])
        if is_web(folder) and (not name.startswith(place) or "?" in name or "#" in name):
            continue  # a link to elsewhere, or to the same page in another order
        if name.strip("/") == own:  # an object that stands for the folder itself
            continue
        is_one = info["type"] == "directory"
        yield (
            name.rstrip("/").rpartition("/")[2],
            is_one,
            None if is_one or info.get("size") is None else _stat_in(info),
        )


def pieces(url: str, stat: Stat | None, start: int = 0, size: int | None = None) -> Iterator[bytes]:
    """Read a file, or a part of it, piece by piece.

    Raises
    ------
    FileNotFoundError, UnreadableError
        If it is not there, or cannot be read to its end.
    """
    end = (stat.bytes if stat else 0) if size is None else start + size
    if not end:  # its size is not known beforehand
        yield from _streamed(url)
    while start < end:
        piece = _part(url, start, min(end, start + PIECE), stat)
        yield piece
        start += len(piece)


def opened(url: str, stat: Stat) -> BinaryIO:
    """Open a file that can be read in any order, a block at a time; errors while it is read are those of `pieces`."""
    return BufferedReader(_Parts(url, stat), BLOCK)


def opened_forwards(url: str) -> BinaryIO:
    """Open a file to be read once, from its beginning to its end: what is sought must lie ahead."""
    return BufferedReader(_Forwards(url), BLOCK)


def gives_parts(url: str, stat: Stat) -> bool:
    """Whether parts of a file can be read, which not every web server allows."""
    if not is_web(url):
        return True
    try:
        return stat.bytes > 1 and len(_part(url, 1, 2, stat)) == 1
    except UnreadableError as error:
        if error.reason == NO_PARTS:
            return False
        raise


class _Parts(RawIOBase):
    """A remote file of which parts are read as they are wanted."""

    def __init__(self, url: str, stat: Stat) -> None:
        self._url, self._stat, self._place = url, stat, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._place = max(0, offset + {SEEK_CUR: self._place, SEEK_END: self._stat.bytes}.get(whence, 0))
        return self._place

    def readinto(self, buffer: Any) -> int:
        end = min(self._place + len(buffer), self._stat.bytes)
        if end <= self._place:
            return 0
        data = _part(self._url, self._place, end, self._stat)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


class _Forwards(RawIOBase):
    """A remote file that is read from its beginning; what lies before a place that is sought is read and dropped."""

    def __init__(self, url: str) -> None:
        self._pieces, self._left, self._place = _streamed(url), memoryview(b""), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        target = offset + {SEEK_CUR: self._place}.get(whence, 0)
        if whence == SEEK_END or target < self._place:
            raise UnreadableError("read", NO_PARTS)
        while self._place < target and self._take(target - self._place):
            pass
        return self._place

    def readinto(self, buffer: Any) -> int:
        data = self._take(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _take(self, size: int) -> memoryview:
        """Return what comes next, but no more than so many bytes."""
        if not self._left:
            self._left = memoryview(next(self._pieces, b""))
        data, self._left = self._left[:size], self._left[size:]
        self._place += len(data)
        return data


def _info(url: str) -> dict[str, Any]:
    return _tried(url, lambda system, url: dict(system.info(url)))


def _part(url: str, start: int, end: int, stat: Stat | None) -> bytes:
    """Read a part of a file."""

    def read(system: Any, url: str) -> bytes:
        if not is_web(url):
            return bytes(system.cat_file(url, start=start, end=end))
        # The size spares a request for it; without a cache, just what is wanted is asked for.
        with system.open(url, "rb", size=stat.bytes if stat else None, cache_type="none") as file:
            file.seek(start)
            return bytes(file.read(end - start))

    def whole(system: Any, url: str) -> bytes:
        data = read(system, url)
        if len(data) != end - start:
            raise OSError("it ends too early")
        return data

    try:
        return _tried(url, whole)
    except ValueError as error:  # which is how fsspec says that a server sends all of a file
        raise UnreadableError("read", NO_PARTS) from error


def _streamed(url: str) -> Iterator[bytes]:
    """Read a file once, from its beginning."""
    file = _tried(
        url, lambda system, url: system.open(url, "rb", **({"block_size": 0, "size": 1} if is_web(url) else {}))
    )
    with file:
        while True:
            try:
                piece = bytes(file.read(BLOCK))
            except Exception as error:
                raise _translated(error) from error
            if not piece:
                return
            yield piece


def _tried(url: str, function: Callable[[Any, str], Result]) -> Result:
    """Have something done with a URL's file system, again if that may help."""
    system, url = file_system(url), protocol_of(url) + url[url.index(":") :]
    for left in reversed(range(ATTEMPTS if is_web(url) else 1)):
        try:
            return function(system, url)
        except ValueError:
            raise
        except Exception as error:
            translated = _translated(error)
            if not left or isinstance(translated, FileNotFoundError) or _status_of(error) in REFUSALS:
                raise translated from error
    raise AssertionError  # there is at least one attempt


def _translated(error: Exception) -> FileNotFoundError | UnreadableError:
    """Say what went wrong in one line that has no secrets in it."""
    status, cause = _status_of(error), _behind(error)
    hides_another = isinstance(cause, ConnectionError | TimeoutError) or type(cause).__module__.startswith("aiohttp")
    if status in MISSING or (isinstance(error, FileNotFoundError) and not hides_another):
        return FileNotFoundError(2, "no such file")
    if status in DENIED or isinstance(error, PermissionError):
        reason = NO_ACCESS
    elif "NoCredentials" in type(cause).__name__:
        reason = "there are no credentials for it"
    elif isinstance(cause, TimeoutError):
        reason = "its server did not answer in time"
    elif status:
        reason = f"its server answered {status} {getattr(cause, 'message', '')}".strip()
    else:
        reason = re.sub(
            r"[?#][^\s'\"]*|^An error occurred \(\w+\) when calling the \w+ operation: ", "", first_line(cause)
        )
    return UnreadableError("read", reason)


def _status_of(error: BaseException) -> int:
    """Return the status that a web server answered with; 0 where it did not."""
    return int(getattr(_behind(error), "status", 0) or 0)


def _behind(error: BaseException) -> BaseException:
    """Return what is behind an error: fsspec takes whatever a web server says for a missing file."""
    return (error.__cause__ or error) if isinstance(error, FileNotFoundError) else error


def _stat_in(info: dict[str, Any]) -> Stat:
    """Return what a listing says of a file."""
    etag = version_in(info).strip('"')
    time = next((info[name] for name in TIMES if info.get(name)), None)
    if isinstance(time, str):
        time = parsedate_to_datetime(time) if "," in time else datetime.fromisoformat(time)
    if isinstance(time, datetime):
        time = (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    whole = int(time or 0) if etag else float(time or 0)  # some listings have fractions of a second, and some do not
    return Stat(int(info.get("size") or 0), int(whole * 10**9), etag=etag)
