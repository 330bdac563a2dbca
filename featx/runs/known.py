# What earlier calls left in the manifest of a run, and what of it is still current.
"""Lines of earlier calls, compared with the images and outputs of today."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from enum import Enum, auto
from pathlib import Path

from msgspec import Struct

from featx.collecting import many_records
from featx.errors import UsageError
from featx.images.locators import exists, same_image, sha256_of, stat_of
from featx.paths import is_url, to_path
from featx.runs.formats import Reader
from featx.runs.manifest import Done, lines
from featx.values import Item, Stat


class Known(Struct, frozen=True, gc=False):
    """What is kept of a line to plan with it, so that a million of them fit into memory.

    Attributes
    ----------
    done : bool
        Whether there are features.
    place : int
        Of the image's path, as `place_of` gives it.
    stat : Stat or None
        Of the image when it was read.
    output : str
        The file with the features.
    bytes : int
        Its size.
    stage, error : str
        Of a failure.
    """

    done: bool
    place: int
    stat: Stat | None
    output: str
    bytes: int
    stage: str = ""
    error: str = ""


@many_records()
def read_known(folder: Path) -> dict[str, Known]:
    """Read the last line of every key in the manifest."""
    found = {}
    for line in lines(folder):
        place = place_of(line.path)
        if isinstance(line, Done):
            found[line.key] = Known(True, place, line.input, line.output, line.bytes)
        else:
            found[line.key] = Known(False, place, line.input, "", 0, line.stage, line.error)
    return found


class State(Enum):
    """What has become of a line's image and output since."""

    CURRENT = auto()
    STALE = auto()
    GONE = auto()  # the image; its features are kept


def state_of(reader: Reader, item: Item, line: Known, *, hashed: bool = False) -> State:
    """Compare a line with the disk: whether its output is there in full, and its image there and unchanged."""
    if line.done and not reader.holds(item.key, line.output, line.bytes):
        return State.STALE
    now, then = item.stat or stat_of(item.path), line.stat
    if now is None and line.done:
        return State.GONE
    if hashed and now and then and then.sha256:
        same = sha256_of(item.path) == then.sha256
    elif now and then:
        same = is_same(now, then)
    else:
        same = now is then  # both could not be read
    return State.CURRENT if same else State.STALE


def is_same(now: Stat, then: Stat) -> bool:
    """Whether a file has the size, time and version that it had."""
    return (now.bytes, now.mtime_ns, now.etag) == (then.bytes, then.mtime_ns, then.etag)


def place_of(path: str) -> int:
    """Return a number that stands for an absolute path or a URL, as text; links are not followed."""
    return hash(path if is_url(path) else os.path.normpath(path))


def require_same_images(folder: Path, paths: Mapping[str, str]) -> None:
    """Refuse images whose key in the manifest is that of other images, which are still there.

    Parameters
    ----------
    folder : Path
        The run's.
    paths : mapping
        Of keys to the images that are to have them now.

    Raises
    ------
    UsageError
        If there is one.
    """
    last = {line.key: line.path for line in lines(folder) if line.key in paths}
    for key, text in last.items():
        now, then = paths[key], to_path(text)
        if exists(then) and not same_image(then, now):
            raise UsageError(
                f"{then} is stored as {key} in {folder}, and so would be {now}",
                "Choose another folder with --output, or give the folder that holds both",
            )


def count_gone(folder: Path, keys: Collection[str]) -> int:
    """Count the keys whose images no longer exist; those behind URLs, which nobody asked for, are not looked for."""
    paths = {line.key: line.path for line in lines(folder) if line.key in keys and not is_url(line.path)}
    return sum(not exists(to_path(path)) for path in paths.values())
