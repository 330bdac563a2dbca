# merge: the parts of a run's manifest become one.
"""``featx merge`` as a function."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from featx.runs import manifest, parts, remote
from featx.runs.mirror import mirror_of, part_names
from featx.runs.summary import require_summary
from featx.runs.suspects import all_suspects, save_suspects


@dataclass(frozen=True, slots=True)
class Merged:
    """The result of merging.

    Attributes
    ----------
    folder : Path or str
        The run's, or its URL.
    parts : int
        How many there were.
    done, failed : int
        Images in the manifest.
    """

    folder: Path | str
    parts: int
    done: int
    failed: int


def merge(folder: str | PathLike[str]) -> Merged:
    """Fold the parts that shards have written into one manifest, whose lines are those of a run in one go.

    Lines that were there before the shards stay first; those of the shards follow in the order of the images in the
    calls that wrote them. Of an image that has several lines, the last is kept. Interrupted at any moment, nothing is
    lost, and it can be done again.

    Raises
    ------
    FeatxError
        If the folder is not a run, cannot be written, or is in use.
    """
    require_summary(folder)  # before looking for its lock
    with remote.at(folder) as place, remote.exclusive(place, make=False) as held:
        mirror = mirror_of(place)
        count = len(part_names(mirror.store) if mirror else parts.found(place))
        save_suspects(held.unfinished, all_suspects(place))
        held.begin()
        counted = manifest.counted(place)
    return Merged(mirror.store.url if mirror else place, count, counted["done"], counted["failed"])
