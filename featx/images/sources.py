# From what the user names (files, folders, patterns, lists) to items: one path and one output key per image.
"""Finding the images."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from featx import paths
from featx.collecting import many_records
from featx.errors import UnreadableError, UsageError
from featx.images import archives, plugins, storage, tables, webdataset
from featx.images.archives import Listing
from featx.images.named import Input, listed_key, looked_at, member_key
from featx.images.remote_walking import RemoteWalk
from featx.images.walking import (
    SUFFIXES,
    Walk,
    has_archive_suffix,
    without_suffix,
)
from featx.paths import absolute, fold, is_url, to_text, without_query
from featx.values import Item, Stat


@dataclass(slots=True)
class Found:
    """The images that the inputs stand for.

    Attributes
    ----------
    items : list of Item
        In the order given; folders in natural order (2.jpg before 10.jpg).
    others : int
        Files in folders that have no suffix of images.
    unread : Counter
        Images in folders that cannot be read because a plugin is missing, by plugin.
    unfollowed : int
        Linked folders inside folders, which are not walked.
    repeated : int
        Files that were named before, even if under another key.
    example : tuple of str
        Path and key of one that would have had another key; empty if there is none.
    closed : int
        Folders inside folders that cannot be read.
    unpacked : int
        Archives beside a folder of their name, which are taken to have been unpacked there.
    archives : list of Contents
        What is in the archives, in the order in which they were found.
    crowded : list of int
        Places of items whose keys differ from those of others only in what a file system may treat as equal.
    """

    items: list[Item] = field(default_factory=list)
    others: int = 0
    unread: Counter[plugins.Plugin] = field(default_factory=Counter)
    unfollowed: int = 0
    repeated: int = 0
    example: tuple[str, ...] = ()
    closed: int = 0
    unpacked: int = 0
    archives: list[archives.Contents] = field(default_factory=list)
    crowded: list[int] = field(default_factory=list)


@many_records()
def find(
    inputs: Iterable[str], listed: Iterable[str] = (), listing: Callable[[str], Listing] = archives.listing
) -> Found:
    """Find the images that are meant.

    A file's key is its name; a folder's images keep the folder's name in front (``cats/1.jpg``), and so do those of a
    pattern from its first fixed folder on; the paths of a list stay as they are written, without a leading slash. Keys
    are text (`featx.paths.to_text`). A file that is named in several ways gets its first key.

    An archive is a folder whose name lacks the suffix (``photos/cats/1.jpg`` of ``photos.tar``), unless it is one of
    the shards that ``{000..127}`` stands for: their keys are those of WebDataset (`featx.images.webdataset`).

    Parameters
    ----------
    inputs : iterable of str
        Files, archives, folders (walked) and glob patterns (``**`` goes through folders), and names of shards; or URLs
        of these.
    listed : iterable of str
        Paths and URLs of single images; they may be missing, which is a failure of that image when it is read.
    listing : callable
        Returns the images in an archive.

    Raises
    ------
    UsageError
        If an input does not exist or holds no image, or if two images would have the same key.
    FeatxError
        If a path is relative, and the current folder is gone; or a URL needs a library, or cannot be listed.
    """
    named, listed = [one for text in inputs for one in looked_at(text)], tuple(listed)
    here = paths.here() if listed else ""
    found = Found()
    places: dict[str, int] = {}
    crowds: dict[str, list[int]] = {}
    taken: dict[str, int] | None = {} if _may_overlap(named, listed) else None
    pairs = (pair for one in named for pair in _images(one, found, listing))
    for name, path, stat in chain(pairs, ((listed_key(line, here), line, None) for line in listed)):
        new = len(found.items)
        if taken is not None and (place := taken.setdefault(absolute(path), new)) < new:
            _repeat(found, path, found.items[place].key, name)
            continue
        key = to_text(name)
        place = places.setdefault(fold(key), new)
        if place == new:
            found.items.append(Item(key, path, stat=stat))
        elif earlier := _same_key(found.items, crowds.get(fold(key), [place]), key):
            _require_same_file(earlier, path)
            _repeat(found, path, key, key)
        else:
            crowds.setdefault(fold(key), [place]).append(new)
            found.items.append(Item(key, path, stat=stat))
    found.crowded = list(chain.from_iterable(crowds.values()))
    if not found.items:
        raise UsageError("There are no images to work on", "Give image files, archives, folders, patterns or a list")
    return found


def _may_overlap(named: Sequence[Input], listed: Sequence[str]) -> bool:
    """Whether a file could be found in two ways that give it two keys."""
    if listed or len(named) < 2:
        return bool(named and listed)
    names: dict[str, str] = {}
    if any(names.setdefault(absolute(one.path), one.name) != one.name for one in named):
        return True
    return any(above in names for path in names for above in _above(path))


def _above(path: str) -> Iterator[str]:
    """Yield the folders above a path or URL."""
    while path := path.rpartition("/")[0]:
        yield path


def _repeat(found: Found, path: str, key: str, name: str) -> None:
    found.repeated += 1
    if not found.example and to_text(name) != key:
        found.example = (path, key)


def _same_key(items: Sequence[Item], places: Iterable[int], key: str) -> Item | None:
    return next((items[place] for place in places if items[place].key == key), None)


def _require_same_file(earlier: Item, path: str) -> None:
    if absolute(earlier.path) != absolute(path):
        hint = "Give the folder that holds both, or a list with --from-file, which keeps the folders"
        if archives.split(path) and archives.split(earlier.path):
            hint = "Give the archives, or their folder, without { }, so that keys begin with the archives' names"
        raise UsageError(f"{earlier.path} and {path} would both be stored as {earlier.key}", hint)


def _images(one: Input, found: Found, listing: Callable[[str], Listing]) -> Iterator[tuple[str, str, Stat | None]]:
    """Yield name and path of an input's images, and what is known of remote ones.

    Raises
    ------
    UsageError
        If it has none.
    """
    if one.pattern is None and not (one.column or _is_archive(one.path)):  # of which a call may name very many
        yield one.name, one.path, None
        return
    wanted = tables.SUFFIX if one.column else ""
    walk, count = RemoteWalk(wanted) if is_url(one.path) else Walk(wanted), 0
    files = [(one.name, one.path)] if one.pattern is None else walk.images(one.path, one.name, one.pattern)
    for name, path in files:
        members: Iterable[tuple[str, str]] = [(name, path)]
        if one.column:
            members = _rows(name, path, one.column)
        elif _is_archive(path):
            members = _members(name, listing(path), found, walk)
        for key, place in members:
            count += 1
            yield key, place, walk.stat_of(place)
    found.others += walk.others
    found.unread += walk.unread
    found.unfollowed += walk.linked
    found.closed += walk.closed
    found.unpacked += walk.unpacked
    if not count:
        raise _without_images(one.text, walk)


def _rows(name: str, path: str, column: str) -> Iterator[tuple[str, str]]:
    """Yield key and locator of a table's rows, or of the table if it cannot be read."""
    locator = f"{path}{tables.MARK}{column}"
    try:
        names = tables.names_in(path, storage.stat_of(path), column)
    except (OSError, UnreadableError):
        yield name, locator
        return
    for row, key in enumerate(names):
        yield f"{tables.without_suffix(name)}/{key}", f"{locator}{tables.MARK}{row}"


def _is_archive(path: str) -> bool:
    return has_archive_suffix(without_query(path)) and not archives.split(path)


def _members(name: str, inside: Listing, found: Found, walk: Walk) -> Iterator[tuple[str, str]]:
    """Yield name and locator of an archive's images, and of the archive if something is wrong with it as a whole."""
    folder = f"{without_suffix(name)}/"
    whole = name or member_key(inside.path, "")
    pairs = ((folder + member, member) for member in inside.names) if name else webdataset.keys_of(inside.names)
    for key, member in pairs:
        yield key if member else whole, f"{inside.path}{archives.MARK}{member}"
    walk.others += inside.contents.others
    walk.unread += inside.unread
    found.repeated += inside.contents.repeated
    if not inside.unread:  # an archive is to be read again when the plugin is there
        found.archives.append(inside.contents)


def _without_images(text: str, walk: Walk) -> UsageError:
    """Return the error of an input without images, with the most likely reason."""
    if walk.unread:
        names, remedy = plugins.counted(walk.unread)
        return UsageError(f"There are no images in {text} except {names}", remedy)
    if walk.reason:
        hint = "Check the path and its permissions"
    elif "::" in text:
        hint = f"Tables are files that end in {tables.SUFFIX}"
    elif "[" in text and not os.path.lexists(text):
        hint = f"In patterns, [ ] matches one of the characters inside; for a bracket write {glob.escape('[')}"
        hint += f", as in {text.replace('[', glob.escape('['))}"
    elif walk.linked:
        hint = "Linked folders are not followed; give them as inputs"
    else:
        hint = f"Images are files that end in {' '.join(sorted(SUFFIXES))}"
    return UsageError(f"There are no images in {text}{walk.reason and ': '}{walk.reason}", hint)
