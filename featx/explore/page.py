# Page: photos of a run and their features in one HTML file, in which a browser compares cells, without any network.
"""``featx view --html`` as a function."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from featx import files
from featx.errors import FeatxError, OutputError
from featx.explore import budget, packing, payload
from featx.explore.budget import Plan
from featx.explore.packing import Cost, Packed
from featx.explore.shown import Shown, choose, shown
from featx.images import cells
from featx.runs import places
from featx.runs.places import Levels
from featx.runs.reading import Run, open_run
from featx.text import count_of
from featx.values import Level

# How pages begin, by which featx knows those that it wrote and may replace.
MARK = b'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<meta name="generator" content="featx view">\n'
SUFFIXES = (".html", ".htm")

# The largest page by default, in millions of bytes.
MAX_MB = 20.0

# The most bytes that the description of a level takes.
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
    levels : dict of str to Cost
        Name of the array to what packing its features cost.
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
    levels: dict[str, Cost]
    gone: list[str]
    notes: list[str]
    weights: str


def write_page(
    run: str | PathLike[str] | Run,
    output: str | PathLike[str],
    keys: Sequence[str] = (),
    levels: Levels = None,
    max_photos: int = 8,
    max_mb: float = MAX_MB,
) -> Page:
    """Write a page that shows how similar every cell of every photo is to the one under the pointer.

    Parameters
    ----------
    run : path or Run
        A run with maps.
    output : path
        The page: .html or .htm. Only pages that featx wrote are replaced.
    keys : sequence of str
        The photos, by their keys or files; none takes the first ones.
    levels : int, str or Level, or a sequence of them, or None
        The maps; None takes all whose cells can be found in the photos.
    max_photos : int
        The most photos.
    max_mb : float
        The largest page, in millions of bytes: photos get smaller, components fewer, and at last photos fewer, until
        it fits.

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
    chosen, without_cells = _on_photos(photos, chosen)
    about = payload.about(opened)
    fixed = len(payload.template().encode()) + len(payload.as_json(about)) + LEVEL * len(chosen)
    plan = budget.plan(photos, chosen, max_mb, fixed)
    packed = {level.key: plan.packed(level) for level in chosen}
    costs = {key: each.cost for key, each in packed.items()}
    notes = [*_notes(plan, len(photos), [*costs.values()], max_mb), *_left_out(unplaced, without_cells)]
    described = payload.described(plan.photos, plan.jpegs, chosen, packed)
    scope = f"{count_of(len(plan.photos), 'photo')} of the run's {len(opened)}, as the model saw them."
    size = _write(path, {**about, **described, "notes": [scope, *notes]}, packed.values())
    seen, kind = [photo.key for photo in plan.photos], opened.summary["weights"]["kind"]
    return Page(path, size, seen, len(opened), costs, plan.gone, notes, kind)


def require_writable(path: Path) -> None:
    """Refuse a page's path before the work starts: only pages that featx wrote may be replaced.

    Raises
    ------
    OutputError
        If it has no suffix of a page, its folder does not exist or takes no files, or it would replace something else.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(f"{path} is not the name of a page", "Use a name that ends in .html")
    files.require_replaceable(path, _is_ours, "written", "--html")


def _is_ours(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(MARK)) == MARK
    except OSError:
        return False


def _levels(run: Run, levels: Levels) -> tuple[list[Level], list[Level]]:
    """Return the levels to show, and those that are left out because nobody knows where their cells lie."""
    chosen = places.chosen(run.maps, levels)
    unplaced = [level for level in chosen if level.offset is None or level.stride is None]
    if unplaced and (levels is not None or len(unplaced) == len(chosen)):
        cells.spacing_of(unplaced[0])  # which says so
    return [level for level in chosen if level not in unplaced], unplaced


def _on_photos(photos: Sequence[Shown], levels: Sequence[Level]) -> tuple[list[Level], list[Level]]:
    """Return the levels that have cells on a photo, and those that have none since all photos are too narrow.

    Raises
    ------
    FeatxError
        If all have none.
    """
    having = [level for level in levels if any(packing.cells_on(photo, level) for photo in photos)]
    if not having:
        raise FeatxError(
            f"No cell of {levels[0].key} is centred on the photos",
            "Choose a level with a smaller stride, or other photos",
        )
    return having, [level for level in levels if level not in having]


def _notes(plan: Plan, wanted: int, costs: Sequence[Cost], max_mb: float) -> list[str]:
    """Say what was left out or reduced, and what that costs."""
    limit, notes = f"{max_mb:g} MB", []
    if len(plan.photos) < wanted:
        notes.append(f"Only the first {len(plan.photos)} of {wanted} photos fit into {limit}.")
    if any(plan.side < min(budget.SIDES[0], max(photo.frame.input)) for photo in plan.photos):
        notes.append(f"Photos are reduced to {plan.side} pixels to fit into {limit}.")
    notes.append(_cost(costs, f", as few as fit into {limit}" if plan.reduced else ""))
    if plan.reduced:
        notes.append("A larger --max-mb, fewer levels (--level) or fewer photos (--max-photos) leave room for more.")
    if gone := len(plan.gone):
        those = "The file of one photo is" if gone == 1 else f"The files of {gone} photos are"
        notes.append(f"{those} gone or changed: {'its' if gone == 1 else 'their'} cells are shown on grey.")
    return notes


def _cost(costs: Sequence[Cost], why: str) -> str:
    """Say how features are packed, and how much that changes the cosines of the worst level."""
    fewest, most = min(each.components for each in costs), max(each.components for each in costs)
    span = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return (
        f"Features are stored as 8-bit numbers along {span} principal components, joint over all photos{why}. "
        f"This changes the cosines of a level by up to {max(each.mean for each in costs):.4f} on average, and by "
        f"{max(each.largest for each in costs):.3f} at most, in {max(each.pairs for each in costs):,} pairs of cells."
    )


def _left_out(unplaced: Sequence[Level], without_cells: Sequence[Level]) -> list[str]:
    return [
        *(f"{level.key} is left out, as its offset or stride is unknown." for level in unplaced),
        *(f"{level.key} is left out, as no cell of it is centred on a photo." for level in without_cells),
    ]


def _write(path: Path, described: dict[str, Any], levels: Collection[Packed]) -> int:
    """Write a page, complete or not at all; return its size."""
    pieces = [piece.encode() for piece in payload.pieces(described, levels)]
    try:
        files.write_atomically(path, pieces)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{path} cannot be written: {reason}", "Free some space, or choose another place") from error
    return sum(map(len, pieces))
