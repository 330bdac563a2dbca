# Archives: which images are in a tar or zip file, where each of them lies, and its bytes; nothing is ever unpacked.
"""Tar and zip files as folders of images.

A member's locator is ``photos.tar::cats/1.jpg``; ``photos.tar::`` stands for the archive as a whole, and is there only
if something is wrong with it. An archive is read through once per process for where its members lie, which takes 24
bytes each; after that, members are read by their places, in any order. Only compressed tars have to be decompressed up
to them.
"""

from __future__ import annotations

import lzma
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from threading import Lock
from typing import Any, BinaryIO

from msgspec import Struct

from featx import paths
from featx.errors import UnreadableError, first_line
from featx.images import remote, storage, tables, tars, zips
from featx.images.plugins import Plugin, missing
from featx.images.walking import has_archive_suffix, has_image_suffix, suffix_of
from featx.paths import is_url, without_query
from featx.signatures import HEAD, archive_kind, described
from featx.text import count_of
from featx.values import Stat

MARK = "::"

# Members of an archive that are looked at, and bytes of a name: more is nobody's photos, but could fill the memory.
MOST, LONGEST = 10_000_000, 4096

# Archives whose places are kept, and compressed ones that are kept open: the one in use, and the one that follows.
KEPT, OPEN = 1 << 14, 2


class Contents(Struct, frozen=True):
    """What an archive was seen to hold, as the summary keeps it.

    Attributes
    ----------
    path : str
        The archive, as text, absolute.
    bytes, mtime_ns : int
        Its size and time.
    images : int
        How many lines it gives in the manifest.
    others : int
        Members that have no suffix of images.
    repeated : int
        Members that came again later; the last one counts, as when the archive is unpacked.
    etag : str
        The version of a remote archive.
    """

    path: str
    bytes: int
    mtime_ns: int
    images: int
    others: int = 0
    repeated: int = 0
    etag: str = ""


class Listing(Struct):
    """The images in an archive.

    Attributes
    ----------
    path : str
        The archive.
    contents : Contents
        What there is.
    names : sequence of str
        The images, in the archive's order; at the end an empty name if something is wrong with it as a whole.
    unread : Counter
        Images that cannot be read because a plugin is missing, by plugin.
    """

    path: str
    contents: Contents
    names: Sequence[str]
    unread: Counter[Plugin]


class Archive:
    """A file that holds others.

    Parameters
    ----------
    path : str
        Where it is.
    stat : Stat
        Its size, time and version: a changed archive is another one.
    """

    def __init__(self, path: str, stat: Stat) -> None:
        self._path, self.stat = path, stat
        self._lock = Lock()
        self._index: _Index | None = None

    def listing(self) -> Listing:
        """Read through the archive, and return the images in it."""
        index = _Index(self._path, self.stat)
        names, repeated = index.read()
        self._index = index
        path, stat = paths.path_text(paths.absolute(self._path)), self.stat
        contents = Contents(path, stat.bytes, stat.mtime_ns, len(names), index.others, repeated, stat.etag)
        return Listing(self._path, contents, names, index.unread)

    def index(self) -> _Index:
        """Return where its members lie; read through it if that was not done yet."""
        with self._lock:
            if self._index is None:
                self.listing()
        assert self._index is not None  # noqa: S101 - it was read
        return self._index

    def holds(self, name: str) -> bool:
        """Whether a member is there; an archive that was not read through is taken to hold what it held."""
        return self._index is None or self._index.find(name) is not None

    def place_of(self, name: str) -> int:
        """Return where a member lies; those that are not there come first."""
        return (self.index().find(name) or (-1, 0))[0]

    def is_stream(self) -> bool:
        """Whether its members can only be read one after the other."""
        return self.index().kind in tars.OPENERS

    def source(self, name: str, going_on: Callable[[], None]) -> tuple[int, Iterator[bytes]]:
        """Return a member's size, and its bytes piece by piece; `going_on` is called on the way there.

        Raises
        ------
        UnreadableError
            If it gives no bytes; while the pieces are taken, if they are damaged.
        FileNotFoundError
            If it is not there.
        """
        index = self.index()
        if not name and index.trouble:
            raise UnreadableError("read", index.trouble)
        found = index.find(name)
        if found is None:
            raise FileNotFoundError(name)
        place, size = found
        if index.kind == "zip":
            return zips.source(self._path, self.stat, place, size)
        if size < 0:
            raise UnreadableError("read", tars.REFUSED[size])
        if index.kind in tars.OPENERS:
            return size, _stream(self._path, self.stat, index.kind).part(place, size, going_on)
        return size, storage.part(self._path, self.stat, place, size)


class _Index:
    """Where the members of an archive lie.

    Attributes
    ----------
    kind : str
        ``zip``, one of `tars.OPENERS`, or anything else for a plain tar.
    trouble : str
        What is wrong with the archive as a whole, in one line.
    others : int
        Members that have no suffix of images.
    unread : Counter
        Images that cannot be read because a plugin is missing, by plugin.
    """

    def __init__(self, path: str, stat: Stat) -> None:
        self._path, self._stat = path, stat
        self.kind = self.trouble = ""
        self.others, self._outside, self._example = 0, 0, ""
        self.unread: Counter[Plugin] = Counter()
        self._hashes: Any = None  # sorted; of members with the same name only the last one is kept
        self._places: Any = None
        self._sizes: Any = None

    def find(self, name: str) -> tuple[int, int] | None:
        """Return a member's place and size, as `tars.members` or `zips.members` has them; None if it is not there."""
        row = int(self._hashes.searchsorted(hash(name)))
        if row == len(self._hashes) or self._hashes[row] != hash(name):
            return None
        return int(self._places[row]), int(self._sizes[row])

    def read(self) -> tuple[list[str], int]:
        """Read through the archive; returns the images in it, and how many came again."""
        import numpy as np  # which takes its time, and is not needed as long as no archive is read

        names: list[str] = []
        columns = array("q"), array("q"), array("q")
        troubles = []
        try:
            for name, place, size in self._images():
                names.append(name)
                for column, value in zip(columns, (hash(name), place, size), strict=True):
                    column.append(value)
        except UnreadableError as error:
            troubles.append(error.reason)
        except OSError as error:
            troubles.append(f"it cannot be read: {error.strerror or error}")
        hashes, places, sizes = (np.frombuffer(column, np.int64) for column in columns)
        order = np.argsort(hashes, kind="stable")
        last = np.ones(len(order), bool)
        last[:-1] = hashes[order[1:]] != hashes[order[:-1]]
        rows = order[last]
        self._hashes, self._places, self._sizes = hashes[rows], places[rows], sizes[rows]
        repeated = len(names) - len(rows)
        if repeated:
            names = [names[row] for row in np.sort(rows).tolist()]
        if self._outside:
            troubles.append(f"{count_of(self._outside, 'name')} in it would lead elsewhere, such as {self._example}")
        self.trouble = "; ".join(troubles)
        return names + [""] * bool(troubles), repeated

    def _images(self) -> Iterator[tuple[str, int, int]]:
        without = missing()
        for looked_at, (full, place, size) in enumerate(self._members()):
            if looked_at == MOST:
                raise UnreadableError("read", f"it has more than {MOST:,} members; the others are left out")
            name = _tidy(full)
            if name is None:
                self._outside += 1
                self._example = self._example or tars.shown(full)
            elif not name or name.startswith(".") or "/." in name:  # hidden, as in folders
                continue
            elif not has_image_suffix(name):
                self.others += 1
            elif plugin := without.get(suffix_of(name)):
                self.unread[plugin] += 1
            else:
                yield name, place, size

    def _members(self) -> Iterator[tuple[str, int, int]]:
        whole = is_url(self._path) and not remote.gives_parts(self._path, self._stat)
        with _unpacked(self._path, self._stat, tars.WHOLE) if whole else storage.opened(self._path, self._stat) as file:
            head = file.read(HEAD)
            self.kind = archive_kind(head)
            if not self.kind and self._path.lower().endswith(".zip"):  # with something in front, or cut short
                self.kind = "zip"
            if self.kind == "zip":
                yield from zips.members(file)
            elif not self.kind and (what := described(head)):
                raise UnreadableError("read", f"it is {what}, not an archive")
            elif self.kind not in tars.OPENERS:
                self.kind = tars.WHOLE if whole else self.kind
                file.seek(0)
                yield from tars.members(file)
        if self.kind in tars.OPENERS and self.kind != tars.WHOLE:
            try:
                with _unpacked(self._path, self._stat, self.kind) as unpacked:
                    yield from tars.members(unpacked)
            except lzma.LZMAError as error:
                raise UnreadableError("read", f"it cannot be decompressed: {first_line(error)}") from error


@contextmanager
def _unpacked(path: str, stat: Stat, kind: str) -> Iterator[BinaryIO]:
    """Open a tar to be read from its beginning, decompressed."""
    whole = is_url(path) and not remote.gives_parts(path, stat)
    with remote.opened_forwards(path) if whole else storage.opened(path, stat) as file, tars.OPENERS[kind](file) as tar:
        yield tar


def _tidy(name: str) -> str | None:
    """Return a member's name without empty pieces and dots; None for one that would lead out of a folder."""
    if len(name) > LONGEST or name.startswith("/"):
        return None
    if "/" not in name:
        return None if name == ".." else name
    parts = name.split("/")
    return None if ".." in parts else "/".join(part for part in parts if part not in ("", "."))


@lru_cache(KEPT)
def _archive(path: str, stat: Stat) -> Archive | tables.Table:
    return tables.Table(path, stat, _rows) if tables.is_table(path) else Archive(path, stat)


@lru_cache(OPEN)
def _rows(path: str, stat: Stat, column: str) -> tables.Rows:
    return tables.Rows(path, stat, column)


@lru_cache(OPEN)
def _stream(path: str, stat: Stat, kind: str) -> tars.Stream:
    return tars.Stream(partial(_unpacked, path, stat, kind))


@lru_cache(KEPT)
def _stat_of(url: str) -> Stat:
    """Look up a remote archive, once: a request for every member would take longer than reading it."""
    return storage.stat_of(url)


def at(path: str) -> Archive | tables.Table:
    """Return the archive or table at a path, as it is now.

    Raises
    ------
    OSError, UnreadableError
        If it is not there, or cannot be looked up.
    """
    return _archive(path, _stat_of(path) if is_url(path) else storage.stat_of(path))


def listing(path: str) -> Listing:
    """Read through an archive, and return the images in it; one that has just gone is an image that will fail."""
    close()  # remote ones are looked up again
    try:
        found = at(path)
        assert isinstance(found, Archive)  # noqa: S101 - tables are named with a column
        return found.listing()
    except (OSError, UnreadableError):
        return Listing(path, Contents(path, 0, 0, 1), [""], Counter())


def split(locator: str) -> tuple[str, str] | None:
    """Return the archive or table, and the member, that a locator refers to; None if it is a file's path."""
    place = locator.find(MARK)
    while place >= 0:
        path = locator[:place]
        named_so = tables.is_table(path) or has_archive_suffix(without_query(path))
        if named_so and (is_url(path) or os.path.isfile(path)):  # noqa: PTH113 - text
            return path, locator[place + len(MARK) :]
        place = locator.find(MARK, place + 1)
    return None


def close() -> None:
    """Let go of compressed archives and tables that were kept open, and of what is known of remote ones."""
    _stream.cache_clear()
    _rows.cache_clear()
    _stat_of.cache_clear()
