# From what the user names (files, folders, patterns, lists) to items: one path and one output key per image.
"""Finding the images."""

from __future__ import annotations

import glob
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from featx import paths
from featx.collecting import many_records
from featx.errors import UsageError
from featx.images import archives, locators, plugins, shards
from featx.images.archives import Listing
from featx.images.walking import (
    ANY_FOLDERS,
    ARCHIVES,
    SUFFIXES,
    Pattern,
    Walk,
    has_archive_suffix,
    has_image_suffix,
    without_suffix,
)
from featx.paths import absolute, fold, to_text
from featx.text import listed as in_words
from featx.values import Item


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


@dataclass(frozen=True, slots=True)
class _Input:
    """An input before it is walked.

    Attributes
    ----------
    text : str
        As it was written.
    path : str
        The file, or the folder in which to begin.
    name : str
        The file's key, or what comes first in those of a folder's images; nothing for a shard.
    pattern : Pattern or None
        What is wanted of the folder; None for a file.
    """

    text: str
    path: str
    name: str
    pattern: Pattern | None = None


@many_records()
def find(
    inputs: Iterable[str], listed: Iterable[str] = (), listing: Callable[[str], Listing] = archives.listing
) -> Found:
    """Find the images that are meant.

    A file's key is its name; a folder's images keep the folder's name in front (``cats/1.jpg``), and so do those of a
    pattern from its first fixed folder on; the paths of a list stay as they are written, without a leading slash. Keys
    are text (`featx.paths.to_text`). A file that is named in several ways gets its first key.

    An archive is a folder whose name lacks the suffix (``photos/cats/1.jpg`` of ``photos.tar``), unless it is one of
    the shards that ``{000..127}`` stands for: their keys are those of WebDataset (`featx.images.shards`).

    Parameters
    ----------
    inputs : iterable of str
        Files, archives, folders (walked) and glob patterns (``**`` goes through folders), and names of shards.
    listed : iterable of str
        Paths of single images; they may be missing, which is a failure of that image when it is read.
    listing : callable
        Returns the images in an archive.

    Raises
    ------
    UsageError
        If an input does not exist, is a URL or holds no image, or if two images would have the same key.
    FeatxError
        If a path is relative, and the current folder is gone.
    """
    named, listed = [one for text in inputs for one in _named(text)], tuple(listed)
    here = paths.here() if listed else ""
    found = Found()
    places: dict[str, int] = {}
    crowds: dict[str, list[int]] = {}
    taken: dict[str, int] | None = {} if _may_overlap(named, listed) else None
    pairs = (pair for one in named for pair in _images(one, found, listing))
    for name, path in chain(pairs, ((_listed_key(line, here), line) for line in listed)):
        new = len(found.items)
        if taken is not None and (place := taken.setdefault(absolute(path), new)) < new:
            _repeat(found, path, found.items[place].key, name)
            continue
        key = to_text(name)
        place = places.setdefault(fold(key), new)
        if place == new:
            found.items.append(Item(key, path))
        elif earlier := _same_key(found.items, crowds.get(fold(key), [place]), key):
            _require_same_file(earlier, path)
            _repeat(found, path, key, key)
        else:
            crowds.setdefault(fold(key), [place]).append(new)
            found.items.append(Item(key, path))
    found.crowded = list(chain.from_iterable(crowds.values()))
    if not found.items:
        raise UsageError("There are no images to work on", "Give image files, archives, folders, patterns or a list")
    return found


def _may_overlap(named: Sequence[_Input], listed: Sequence[str]) -> bool:
    """Whether a file could be found in two ways that give it two keys."""
    if listed or len(named) < 2:
        return bool(named and listed)
    names: dict[str, str] = {}
    if any(names.setdefault(absolute(one.path), one.name) != one.name for one in named):
        return True
    return any(str(above) in names for path in names for above in Path(path).parents)


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


def _named(text: str) -> list[_Input]:
    """Look at an input, or at all that it stands for.

    Raises
    ------
    UsageError
        As `_existing`.
    """
    if shards.is_of_shards(text) and not os.path.lexists(paths.expanded(text)):
        return [replace(_existing(shard), name="") for shard in shards.expanded(text)]
    return [_existing(text)]


def _existing(text: str) -> _Input:
    """Look at an input: an existing file or folder is taken by its name, even if that looks like a pattern.

    Raises
    ------
    UsageError
        If it neither exists nor is a pattern, or is recognised as something other than an image.
    """
    if not text:
        raise UsageError("An input is empty", "Leave it out, or give . for the current folder")
    path = Path(paths.expanded(text))
    absolute(str(path))  # which raises if the current folder is gone
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)  # noqa: PTH116 - to have the reason of a failure
    except (OSError, ValueError) as error:
        if found := archives.split(str(path)):
            return _Input(text, str(path), _member_key(*found))
        paths.refuse_url(text)
        if glob.has_magic(text):
            return _patterned(text, path)
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            hint = "Check the path; quote patterns, so that featx expands them"
            raise UsageError(f"There is no file or folder {text}", hint) from error
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{text} cannot be read: {reason}", "Check the path") from error
    if is_folder:
        return _Input(text, str(path), _own_name(path), Pattern())
    if not has_image_suffix(path.name) and not has_archive_suffix(path.name):
        _require_image(text, str(path))
    return _Input(text, str(path), path.name)


def _require_image(text: str, path: str) -> None:
    """Refuse a file that is recognised as something else; an unknown one fails when it is decoded."""
    what = locators.recognised(path)
    hints = {
        "archive": f"featx reads {in_words(ARCHIVES, 'and')}; unpack others, and give their folder",
        "video": "Extract frames from it, with ffmpeg for example, and give their folder",
        "file": f"If it is a list of images, give it with --from-file {text}",
    }
    if hint := hints.get(what.split(" ")[-1]):
        raise UsageError(f"{text} is {what}, not an image", hint)


def _patterned(text: str, path: Path) -> _Input:
    """Take a pattern apart: its first folders, up to the first wildcard, are where its keys begin."""
    fixed, parts = Path(), list(path.parts)
    while parts and (not glob.has_magic(parts[0]) or os.path.lexists(fixed / parts[0])):
        fixed /= parts.pop(0)
    wanted: list[str] = []
    for part in parts:
        if part != os.pardir or wanted[-1:] == [ANY_FOLDERS]:
            wanted.append(part)
        elif wanted:
            wanted.pop()  # back out of a folder that is not linked
        else:
            fixed /= part
    return _Input(text, str(fixed), _own_name(fixed), Pattern(wanted, folders_only=text.endswith("/")))


def _own_name(folder: Path) -> str:
    """Return what a folder puts in front of its images' keys: its name, or nothing for ``.``, ``..`` and ``/``."""
    return f"{folder.name}/" if folder.name not in ("", os.pardir) else ""


def _member_key(archive: str, name: str) -> str:
    """Name a member, or the whole archive, as its key does."""
    file = os.path.basename(archive)  # noqa: PTH119 - text
    return f"{without_suffix(file)}/{name}" if name else file


def _images(one: _Input, found: Found, listing: Callable[[str], Listing]) -> Iterator[tuple[str, str]]:
    """Yield name and path of an input's images.

    Raises
    ------
    UsageError
        If it has none.
    """
    walk, count = Walk(), 0
    files = [(one.name, one.path)] if one.pattern is None else walk.images(one.path, one.name, one.pattern)
    for name, path in files:
        members = _members(name, listing(path), found, walk) if _is_archive(path) else [(name, path)]
        for pair in members:
            count += 1
            yield pair
    found.others += walk.others
    found.unread += walk.unread
    found.unfollowed += walk.linked
    found.closed += walk.closed
    found.unpacked += walk.unpacked
    if not count:
        raise _without_images(one.text, walk)


def _is_archive(path: str) -> bool:
    return has_archive_suffix(path) and archives.MARK not in path


def _members(name: str, inside: Listing, found: Found, walk: Walk) -> Iterator[tuple[str, str]]:
    """Yield name and locator of an archive's images, and of the archive if something is wrong with it as a whole."""
    folder = f"{without_suffix(name)}/"
    whole = name or os.path.basename(inside.path)  # noqa: PTH119 - text
    pairs = ((folder + member, member) for member in inside.names) if name else shards.keys_of(inside.names)
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
    elif "[" in text and not os.path.lexists(text):
        hint = f"In patterns, [ ] matches one of the characters inside; for a bracket write {glob.escape('[')}"
        hint += f", as in {text.replace('[', glob.escape('['))}"
    elif walk.linked:
        hint = "Linked folders are not followed; give them as inputs"
    else:
        hint = f"Images are files that end in {' '.join(sorted(SUFFIXES))}"
    return UsageError(f"There are no images in {text}{walk.reason and ': '}{walk.reason}", hint)


def _listed_key(line: str, here: str) -> str:
    """Turn a path of a list into a key: relative to here if it lies below, else in full; never upwards."""
    paths.refuse_url(line)
    if member := archives.split(line):
        line = f"{without_suffix(member[0])}/{member[1]}" if member[1] else member[0]
    path = os.path.normpath(line)
    if path.startswith((os.sep, os.pardir)):
        path = absolute(line).removeprefix(f"{here.rstrip(os.sep)}{os.sep}")
    return path.lstrip(os.sep)
