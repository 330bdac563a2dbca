# Looking through folders for images: all of them, or those that a pattern matches, in natural order.
"""Walking folders.

A broken entry costs only itself: what cannot be read is counted, and the rest is found.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from enum import Enum, auto

from featx.images.plugins import BY_SUFFIX, Plugin, missing
from featx.values import Stat

# Suffixes of images in folders; a file that is named itself may have any.
SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "bmp", "dib", "gif", "tif", "tiff", "avif"),
        *("ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "jpf", "jpx", "jpc", "j2c"),
    )
).union(BY_SUFFIX)

# Suffixes of archives, whose members are images or not by their own.
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")

# The part of a pattern that stands for any number of folders.
ANY_FOLDERS = "**"

_DIGITS = re.compile(r"\d+")


class Kind(Enum):
    """What an entry of a folder is."""

    FILE = auto()
    FOLDER = auto()
    LINKED_FOLDER = auto()
    UNREADABLE = auto()


class Pattern:
    """What is wanted of a folder and those below it.

    A place is the number of the part that the next name has to match; there are several at once, since ``**`` may end
    anywhere. The place behind the last part belongs to a folder that matches, and to everything in it.

    Parameters
    ----------
    parts : sequence of str
        Names with wildcards, from the folder on; none for everything in it.
    folders_only : bool
        Whether only folders match, as with a slash at the end.
    """

    def __init__(self, parts: Sequence[str] = (), *, folders_only: bool = False) -> None:
        self._parts = parts
        self._matchers = [re.compile(fnmatch.translate(part)).match for part in parts]
        self._end = len(parts)
        self._last = -1 if folders_only else self._end - 1
        self.start = self._reached({0})

    def takes(self, places: frozenset[int], name: str) -> bool:
        """Whether a file is wanted."""
        if self._end in places:
            return not name.startswith(".")
        return self._last in places and self._matches(self._last, name)

    def enters(self, places: frozenset[int], name: str) -> frozenset[int]:
        """Return the places in a folder; none if nothing in it is wanted."""
        if self._end in places:
            return frozenset() if name.startswith(".") else places
        next_ones = {place + 1 for place in places if self._matches(place, name)}
        if not name.startswith("."):
            next_ones |= {place for place in places if self._parts[place] == ANY_FOLDERS}
        return self._reached(next_ones)

    def _matches(self, place: int, name: str) -> bool:
        part = self._parts[place]
        if part == ANY_FOLDERS or (name.startswith(".") and not part.startswith(".")):
            return False
        return name == part or self._matchers[place](name) is not None

    def _reached(self, places: set[int]) -> frozenset[int]:
        """Add the places behind ``**``, which may stand for no folder at all; where everything is wanted, only that."""
        for place in range(self._end):
            if place in places and self._parts[place] == ANY_FOLDERS:
                places.add(place + 1)
        return frozenset({self._end} if self._end in places else places)


class Walk:
    """A walk through a folder.

    Parameters
    ----------
    suffix : str
        Of the files that are wanted, and no others are looked at; if empty, these are images and archives.

    Attributes
    ----------
    others : int
        Files that are wanted, but have no suffix of images.
    unread : Counter
        Images that are wanted, but cannot be read because a plugin is missing, by plugin.
    linked : int
        Linked folders, which are not followed.
    closed : int
        Folders that cannot be read, and entries of unknown kind.
    reason : str
        What is wrong with the first of them; empty if there is none.
    unpacked : int
        Archives beside a folder of their name, which are taken to have been unpacked there, and left out.
    """

    def __init__(self, suffix: str = "") -> None:
        self._suffix = suffix
        self.others = self.linked = self.closed = self.unpacked = 0
        self.unread: Counter[Plugin] = Counter()
        self.reason = ""
        self._missing = missing()

    def images(self, folder: str, name: str, pattern: Pattern) -> Iterator[tuple[str, str]]:
        """Find the images and archives that a pattern wants: of each folder first the files, then the folders.

        Parameters
        ----------
        folder : str
            Where to begin.
        name : str
            What it is called in names: nothing, or something with a slash at the end.
        pattern : Pattern
            What is wanted of it.

        Yields
        ------
        (str, str)
            Name and path of an image, or of an archive.
        """
        waiting = [(folder, name, pattern.start)]
        while waiting:
            folder, name, places = waiting.pop()
            before = "" if folder == "." else f"{folder.rstrip('/')}/"
            images: list[str] = []
            inner: dict[str, frozenset[int]] = {}
            for entry, kind in self._entries(folder):
                if kind is Kind.FILE:
                    if pattern.takes(places, entry):
                        self._sort_in(entry, images)
                elif deeper := pattern.enters(places, entry):
                    if kind is Kind.FOLDER:
                        inner[entry] = deeper
                    else:
                        self.linked += kind is Kind.LINKED_FOLDER
            images.sort(key=natural)
            for image in images:
                if inner and without_suffix(image) in inner:  # which only an archive's name can be
                    self.unpacked += 1
                    continue
                yield f"{name}{image}", f"{before}{image}"
            last_first = sorted(inner, key=natural, reverse=True)  # the last one is taken next
            waiting += [(f"{before}{entry}", f"{name}{entry}/", inner[entry]) for entry in last_first]

    def stat_of(self, path: str) -> Stat | None:
        """Return what is known of a file that was just found: of one on the disk, nothing."""
        del path
        return None

    def _sort_in(self, name: str, images: list[str]) -> None:
        if self._suffix:
            images.extend([name] if name.lower().endswith(self._suffix) else [])
        elif not (has_image_suffix(name) or has_archive_suffix(name)):
            self.others += 1
        elif plugin := self._missing.get(suffix_of(name)):
            self.unread[plugin] += 1
        else:
            images.append(name)

    def _entries(self, folder: str) -> Iterator[tuple[str, Kind]]:
        """List a folder, as far as it can be read."""
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    yield entry.name, self._kind_of(entry)
        except OSError as error:
            self._leave_out(folder, error)

    def _kind_of(self, entry: os.DirEntry[str]) -> Kind:
        try:
            if entry.is_dir(follow_symlinks=False):
                return Kind.FOLDER
            if entry.is_symlink() and os.path.isdir(entry.path):  # noqa: PTH112 - text; a link to nowhere is not a folder
                return Kind.LINKED_FOLDER
        except OSError as error:
            if not has_image_suffix(entry.name):  # an image fails on its own when it is read
                self._leave_out(entry.path, error)
                return Kind.UNREADABLE
        return Kind.FILE

    def _leave_out(self, path: str, error: OSError) -> None:
        self.closed += 1
        self.reason = self.reason or f"{path} cannot be read: {error.strerror or error}"


def has_image_suffix(name: str) -> bool:
    """Whether a file's suffix is one of `SUFFIXES`."""
    suffix = suffix_of(name)
    return suffix in SUFFIXES and name[: -len(suffix)].strip(".") != ""  # dots in front begin no suffix


def suffix_of(name: str) -> str:
    """Return a name from its last dot on, in lower case; without a dot, only its last letter."""
    return name[name.rfind(".") :].lower()


def natural(text: str) -> tuple[str, str]:
    """Sort key under which 2 comes before 10, and a number before any other character."""
    return _DIGITS.sub(_ranked, text), text


def _ranked(found: re.Match[str]) -> str:
    """Write a number so that texts compare like numbers: how many digits it has, and these."""
    digits = found[0] if found[0].isascii() else "".join(str(int(digit)) for digit in found[0])
    digits = digits.lstrip("0")
    return f"\0{chr(len(digits))}{digits}"  # not `int`, which takes no more than 4,300 of them


def has_archive_suffix(name: str) -> bool:
    """Whether a file's suffix is one of `ARCHIVES`."""
    return without_suffix(name) != name


def without_suffix(archive: str) -> str:
    """Return an archive's name, or path, without its suffix."""
    lower = archive.lower()
    if not lower.endswith(ARCHIVES):
        return archive
    length = next(len(suffix) for suffix in ARCHIVES if lower.endswith(suffix))
    bare = archive[: len(archive) - length]
    return bare if bare.rpartition("/")[2].strip(".") else archive  # dots in front begin no suffix
