# From what a person names (files, folders, patterns, lists) to items: one path and one output key an image.
"""Finding the images."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path, PurePosixPath

from featx.errors import UsageError
from featx.naming import fold, output_of, to_text
from featx.records import Item, many_records

# What an image in a folder is called; a file that is named by itself may be called anything.
SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "bmp", "dib", "gif", "tif", "tiff", "avif"),
        *("ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "jpf", "jpx", "jpc", "j2c"),
    )
)


@dataclass(slots=True)
class Found:
    """The images behind one request.

    Attributes
    ----------
    items : list of Item
        In the order given; folders in natural order (2.jpg before 10.jpg).
    others : int
        Files in folders that are not called like images.
    unfollowed : int
        Linked folders inside folders, which are not walked.
    repeated : int
        Mentions of a file that was there already.
    closed : int
        Folders that may not be read.
    """

    items: list[Item] = field(default_factory=list)
    others: int = 0
    unfollowed: int = 0
    repeated: int = 0
    closed: int = 0


@many_records()
def find(inputs: Iterable[str], listed: Iterable[str] = ()) -> Found:
    """Find the images that are meant.

    A file's key is its name; a folder's images keep the folder's name in front (``cats/1.jpg``), and so do those of a
    pattern from its first fixed folder on; the paths of a list stay as they are written, without a leading slash. Keys
    are text (`featx.naming.to_text`). Where some differ only in what a file system may not tell apart, their outputs
    get names that are told apart everywhere.

    Parameters
    ----------
    inputs : iterable of str
        Files, folders (walked) and glob patterns (``**`` goes through folders).
    listed : iterable of str
        Paths of single images; they may be missing, which is a failure of that image when it is read.

    Raises
    ------
    UsageError
        If an input does not exist or holds no image, or if two images would get the same key.
    """
    found = Found()
    places: dict[str, int] = {}
    crowds: dict[str, list[int]] = {}
    pairs = (pair for text in inputs for pair in _expand(text, found))
    here = os.getcwd()  # noqa: PTH109 - text, as everything here
    for name, path in chain(pairs, ((_listed_key(line, here), line) for line in listed)):
        key = to_text(_listed_key(path, here) if ".." in name and ".." in name.split("/") else name)
        place = places.setdefault(fold(key), len(found.items))
        if place == len(found.items):
            found.items.append(Item(key, path))
        elif earlier := _same_key(found.items, crowds.get(fold(key), [place]), key):
            _require_same_file(earlier, path)
            found.repeated += 1
        else:
            crowds.setdefault(fold(key), [place]).append(len(found.items))
            found.items.append(Item(key, path))
    for place in chain.from_iterable(crowds.values()):
        item = found.items[place]
        if item.key != fold(item.key):  # a name of its own, whichever of them comes first
            found.items[place] = replace(item, alias=output_of(item.key, apart=True))
    if not found.items:
        raise UsageError("There are no images to work on", "Give image files, folders, patterns, or a list")
    return found


def _same_key(items: Sequence[Item], places: Iterable[int], key: str) -> Item | None:
    return next((items[place] for place in places if items[place].key == key), None)


def _require_same_file(earlier: Item, path: str) -> None:
    if os.path.abspath(earlier.path) != os.path.abspath(path):  # noqa: PTH100 - links are to stay links
        raise UsageError(
            f"{earlier.path} and {path} would both be stored as {earlier.key}",
            "Give the folder that holds both, or a list with --from-file, which keeps the folders",
        )


def read_list(data: bytes) -> tuple[str, ...]:
    """Split a list of paths: one a line, or separated by NUL as ``find -print0`` does it."""
    text = os.fsdecode(data)
    lines = text.split("\0") if "\0" in text else [line.removesuffix("\r") for line in text.split("\n")]
    return tuple(line for line in lines if line.strip())


def natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key under which 2 comes before 10."""
    return [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in re.split(r"(\d+)", text) if piece]


def _expand(text: str, found: Found) -> Iterator[tuple[str, str]]:
    path = Path(text).expanduser()
    if path.is_dir():
        yield from _require(text, _walk(path, _own_name(path), found))
    elif path.exists():
        yield path.name, str(path)
    elif glob.has_magic(text):
        yield from _require(text, _matches(os.path.expanduser(text), found))  # noqa: PTH111 - a Path would tidy it
    else:
        raise UsageError(f"There is no {text}", "Check the path; quote patterns, so that featx expands them")


def _require(text: str, pairs: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    count = 0
    for count, pair in enumerate(pairs, 1):  # noqa: B007 - the last count is what matters
        yield pair
    if not count:
        raise UsageError(f"There are no images in {text}", f"Images are files called {' '.join(sorted(SUFFIXES))}")


def _walk(folder: Path, prefix: PurePosixPath, found: Found) -> Iterator[tuple[str, str]]:
    """Files first, then folders, each in natural order; hidden ones and linked folders are left out."""
    try:
        with os.scandir(folder) as entries:
            visible = sorted(
                (entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: natural(entry.name)
            )
    except PermissionError:
        found.closed += 1
        return
    folders = []
    before = "" if prefix == PurePosixPath() else f"{prefix}/"
    for entry in visible:
        if entry.is_dir(follow_symlinks=False):
            folders.append(entry)
        elif entry.is_dir():
            found.unfollowed += 1
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:  # noqa: PTH122 - a million Path objects take long
            yield f"{before}{entry.name}", entry.path
        else:
            found.others += 1
    for entry in folders:
        yield from _walk(Path(entry.path), prefix / entry.name, found)


def _matches(pattern: str, found: Found) -> Iterator[tuple[str, str]]:
    """Expand a pattern; its first folders, up to the first wildcard, are where its keys begin."""
    pieces = Path(pattern).parts
    fixed = Path(*pieces[: next(number for number, piece in enumerate(pieces) if glob.has_magic(piece))])
    prefix = _own_name(fixed)
    for match in sorted(glob.iglob(pattern, recursive=True), key=natural):  # noqa: PTH207 - Path.glob hides no dot files
        path = Path(match)
        name = prefix / path.relative_to(fixed).as_posix()
        if path.is_dir():
            if "**" not in pieces:  # where it is, the files inside match by themselves
                yield from _walk(path, name, found)
        elif path.suffix.lower() in SUFFIXES:
            yield str(name), str(path)
        elif path.is_file():
            found.others += 1


def _own_name(folder: Path) -> PurePosixPath:
    """Return what a folder adds to its images' keys: its name, or nothing for ``.``, ``..`` and ``/``."""
    return PurePosixPath("" if folder.name == ".." else folder.name)


def _listed_key(line: str, here: str) -> str:
    """Turn a path of a list into a key: relative to here if it lies below, else in full; never upwards."""
    tidy = os.path.normpath(line)
    if tidy.startswith(os.sep):
        tidy = tidy.removeprefix(here.rstrip(os.sep) + os.sep)
    elif tidy == os.pardir or tidy.startswith(os.pardir + os.sep):
        tidy = os.path.abspath(line)  # noqa: PTH100 - links are to stay links
    return tidy.lstrip(os.sep)
