# merge: the parts of a run's manifest become one.
"""``featx merge`` as a function."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from featx.runs import lock, manifest, parts
from featx.runs.summary import require_summary
from featx.runs.suspects import all_suspects, save_suspects


@dataclass(frozen=True, slots=True)
class Merged:
    """The result of merging.

    Attributes
    ----------
    folder : Path
        The run's.
    parts : int
        How many there were.
    done, failed : int
        Images in the manifest.
    """

    folder: Path
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
    folder = Path(folder)
    with lock.exclusive(folder, make=False) as held:
        count = len(parts.found(folder))
        save_suspects(held.unfinished, all_suspects(folder))
        held.begin()
        counted = manifest.counted(folder)
    return Merged(folder, count, counted["done"], counted["failed"])
