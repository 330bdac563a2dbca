# page: photos of a run and their features in one HTML file, in which a browser compares cells, without any network.
"""``featx view --html`` as a function."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from featx import files
from featx.errors import OutputError
from featx.explore import budget, payload
from featx.explore.budget import Plan
from featx.explore.packing import Packed
from featx.explore.shown import Shown, choose, shown
from featx.images import cells
from featx.runs import places
from featx.runs.places import Levels
from featx.runs.reading import Run, open_run
from featx.text import amount_of, count_of
from featx.values import Level

# What a page begins with: by this it is known as ours, and may be replaced.
MARK = b'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<meta name="generator" content="featx view">\n'
SUFFIXES = (".html", ".htm")

# Photos on a page, and its bytes, where nobody asked for others.
PHOTOS, BYTES = 16, 20_000_000

# The bytes that the description of a level takes at most.
LEVEL = 800


@dataclass(frozen=True, slots=True)
class Page:
    """A page that was written.

    Attributes
    ----------
    output : Path
        The file.
    bytes : int
        Its size.
    photos : list of str
        Keys of the photos on it.
    images : int
        How many photos the run has.
    levels : dict of str to Packed
        Name of the array to its packed features, with what packing them cost.
    gone : list of str
        Keys of photos whose files are gone or have changed; their cells are shown without them.
    notes : list of str
        What was left out or reduced, and what that costs; the page says the same.
    weights : str
        What kind of weights made the features, ``random`` for example.
    """

    output: Path
    bytes: int
    photos: list[str]
    images: int
    levels: dict[str, Packed]
    gone: list[str]
    notes: list[str]
    weights: str


def write_page(
    run: str | PathLike[str] | Run,
    output: str | PathLike[str],
    keys: Sequence[str] = (),
    levels: Levels = None,
    *,
    max_photos: int = PHOTOS,
    max_bytes: int = BYTES,
) -> Page:
    """Write a page that shows how similar every cell of every photo is to the one under the pointer.

    Parameters
    ----------
    run : path or Run
        A run with maps.
    output : path
        The page: .html or .htm. Only pages that featx wrote are replaced.
    keys : sequence of str
        The photos; none takes the first ones.
    levels : int, str or Level, or a sequence of them, or None
        The maps; None takes all whose cells can be found in the photos.
    max_photos : int
        The most photos.
    max_bytes : int
        The largest page: photos get smaller, components fewer, and at last photos fewer until it fits.

    Raises
    ------
    FeatxError
        If the page cannot be written, the run lacks the photos or maps asked for, or not even one photo fits.
    """
    path = Path(output)
    require_writable(path)
    opened = run if isinstance(run, Run) else open_run(run)
    chosen, unplaced = _levels(opened, levels)
    photos = [shown(opened, key, chosen) for key in choose(opened, keys, max_photos)]
    about = payload.about(opened)
    fixed = len(payload.template().encode()) + len(payload.as_json(about)) + LEVEL * len(chosen)
    plan = budget.plan(photos, chosen, max_bytes - fixed, fixed)
    packed = {level.key: plan.packed(level) for level in chosen}
    notes = [*_notes(plan, photos, packed, max_bytes), *_unplaced(unplaced)]
    described = about | {
        "notes": [_scope(plan, len(opened)), *notes],
        "levels": [payload.of_level(plan.photos, level, packed[level.key]) for level in chosen],
        "photos": [payload.of_photo(photo, jpeg, chosen) for photo, jpeg in zip(plan.photos, plan.jpegs, strict=True)],
        "start": payload.opening(plan.photos[0], chosen),
    }
    size = _write(path, described, packed.values())
    gone = [photo.key for photo, jpeg in zip(plan.photos, plan.jpegs, strict=True) if not jpeg]
    shown_keys = [photo.key for photo in plan.photos]
    return Page(path, size, shown_keys, len(opened), packed, gone, notes, opened.summary["weights"]["kind"])


def require_writable(path: Path) -> None:
    """Refuse a page's path before the work starts: only pages that featx wrote may be replaced.

    Raises
    ------
    OutputError
        If it has no suffix of a page, its folder does not exist or takes no files, or it would replace something else.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(f"{path} is not the name of a page", "Use a name that ends in .html")
    if not path.parent.is_dir():
        raise OutputError(f"There is no folder {path.parent}", "Create it, or choose another place for --html")
    if os.path.lexists(path) and not _is_ours(path):
        raise OutputError(f"{path} exists and was not written by featx", "Choose another name for --html")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path} cannot be written: Permission denied", "Choose another place for --html")


def _is_ours(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(MARK)) == MARK
    except OSError:
        return False


def _levels(run: Run, levels: Levels) -> tuple[list[Level], list[Level]]:
    """Return the levels to be shown, and those left out since nobody knows where their cells lie."""
    chosen = places.chosen(run.maps, levels)
    unplaced = [level for level in chosen if level.offset is None or level.stride is None]
    if unplaced and (levels is not None or len(unplaced) == len(chosen)):
        cells.spacing_of(unplaced[0])  # which says so
    return [level for level in chosen if level not in unplaced], unplaced


def _scope(plan: Plan, total: int) -> str:
    return f"{count_of(len(plan.photos), 'photo')} of the run's {total}, as the model saw them."


def _notes(plan: Plan, wanted: Sequence[Shown], packed: dict[str, Packed], max_bytes: int) -> list[str]:
    """Say what was left out or reduced, and what that costs."""
    limit, notes = amount_of(max_bytes), []
    if len(plan.photos) < len(wanted):
        kept = f"Only the first {count_of(len(plan.photos), 'photo')} of {len(wanted)}"
        notes.append(f"{kept} fit into {limit} (--max-mb).")
    if any(plan.side < min(budget.SIDES[0], max(photo.frame.input)) for photo in plan.photos):
        notes.append(f"Photos are reduced to {plan.side} pixels, to fit into {limit}.")
    fewest, most = min(plan.counts.values()), max(plan.counts.values())
    span = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    why = f", as few as fit into {limit}" if plan.reduced else ""
    mean = max(each.mean for each in packed.values())
    largest = max(each.largest for each in packed.values())
    notes.append(
        f"Features are packed as 8-bit numbers, along {span} principal components of all photos together{why}. "
        f"This changes the cosines of a level by {mean:.4f} on average and {largest:.3f} at most, over "
        f"{max(each.pairs for each in packed.values()):,} pairs of cells."
    )
    if gone := plan.jpegs.count(""):
        files_of = "file of one photo is" if gone == 1 else f"files of {gone} photos are"
        notes.append(f"The {files_of} gone or changed: {'its' if gone == 1 else 'their'} cells are shown on grey.")
    return notes


def _unplaced(levels: Sequence[Level]) -> list[str]:
    return [f"Where the cells of {level.key} lie is unknown, so it is left out." for level in levels]


def _write(path: Path, described: dict[str, Any], levels: Collection[Packed]) -> int:
    """Write a page, complete or not at all; return its size."""
    pieces = [piece.encode() for piece in payload.pieces(described, levels)]
    try:
        files.write_atomically(path, pieces)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{path} cannot be written: {reason}", "Free some space, or choose another place") from error
    return sum(map(len, pieces))
