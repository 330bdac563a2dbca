# What earlier calls left in the manifest of a run, and what of it is still current.
"""Lines of earlier calls, held against the images and outputs of today."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from featx.errors import UsageError
from featx.images.locators import exists, same_image, sha256_of, stat_of
from featx.paths import to_path
from featx.runs.formats import Reader
from featx.runs.manifest import lines
from featx.values import Stat, many_records


@dataclass(frozen=True, slots=True)
class Known:
    """What has to be remembered of a line to plan with it; a million of them fit into memory.

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
    stage: str
    error: str


@many_records()
def read_known(folder: Path) -> dict[str, Known]:
    """Read the last line of every key in the manifest."""
    found = {}
    for _, line in lines(folder):
        read, place = line["input"], place_of(line["path"])
        stat = Stat(read["bytes"], read["mtime_ns"], read.get("sha256", "")) if read else None
        if line["status"] == "done":
            found[line["key"]] = Known(True, place, stat, line["output"], line["bytes"], "", "")
        else:
            found[line["key"]] = Known(False, place, stat, "", 0, line["stage"], line["error"])
    return found


Standing = Literal["stands", "stale", "gone"]


def standing_of(reader: Reader, key: str, line: Known, path: str, *, hashed: bool = False) -> Standing:
    """Say whether a line can be relied on: its output is there in full, and its image unchanged, or gone."""
    if line.done and not reader.holds(key, line.output, line.bytes):
        return "stale"
    now = stat_of(path)
    if now is None and line.done:
        return "gone"
    if hashed and now and line.stat and line.stat.sha256:
        return "stands" if sha256_of(path) == line.stat.sha256 else "stale"
    same = (now is None) == (line.stat is None) and (
        now is None or line.stat is None or (now.bytes, now.mtime_ns) == (line.stat.bytes, line.stat.mtime_ns)
    )
    return "stands" if same else "stale"


def place_of(path: str) -> int:
    """Return a number that stands for a whole path, as text, however it is written; links are not followed."""
    return hash(os.path.normpath(path))


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
    last = {line["key"]: line["path"] for _, line in lines(folder) if line["key"] in paths}
    for key, text in last.items():
        now, then = paths[key], to_path(text)
        if exists(then) and not same_image(then, now):
            raise UsageError(
                f"{then} is stored as {key} in {folder}, and {now} would be",
                "Choose another folder with --output, or give the folder that holds both",
            )


def count_gone(folder: Path, keys: Collection[str]) -> int:
    """Count those of the keys whose images are no longer there."""
    paths = {line["key"]: line["path"] for _, line in lines(folder) if line["key"] in keys}
    return sum(not exists(to_path(path)) for path in paths.values())
