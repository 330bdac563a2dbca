# page: photos of a run and their features in one HTML file, in which a browser compares cells, without any network.
"""``featx view --html`` as a function."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

from featx import files
from featx.errors import OutputError
from featx.explore import budget, packing
from featx.explore.budget import Plan
from featx.explore.colours import VIRIDIS
from featx.explore.packing import Packed
from featx.explore.shown import Shown, choose, shown
from featx.images import cells
from featx.runs import places
from featx.runs.places import Levels
from featx.runs.reading import Run, open_run
from featx.text import amount_of, count_of, printable, spacing
from featx.values import RANDOM_WEIGHTS, Level
from featx.version import __version__

# What a page begins with: by this it is known as ours, and may be replaced.
MARK = b'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<meta name="generator" content="featx view">\n'
SUFFIXES = (".html", ".htm")

# Photos on a page, and its bytes, where nobody asked for others.
PHOTOS, BYTES = 16, 20_000_000

# A page opens with the last level that has at least so many cells in a photo: coarser ones show little.
OPENING = 144

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
    about = _about(opened)
    fixed = len(_template()) + len(_json(about)) + LEVEL * len(chosen)
    plan = budget.plan(photos, chosen, max_bytes - fixed, fixed)
    packed = {
        level.key: packing.pack(plan.photos, level, plan.bases[level.key], plan.counts[level.key]) for level in chosen
    }
    notes = [*_notes(plan, photos, packed, max_bytes), *_unplaced(unplaced)]
    described = about | {
        "notes": [_scope(plan, len(opened)), *notes],
        "levels": [_level(plan, level, packed[level.key]) for level in chosen],
        "photos": [_photo(photo, jpeg, chosen) for photo, jpeg in zip(plan.photos, plan.jpegs, strict=True)],
        "start": _opening(plan.photos[0], chosen),
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


def _about(run: Run) -> dict[str, Any]:
    """Return what a page says of a run: the model, its weights and the recipe."""
    summary = run.summary
    weights, kind = summary["weights"], summary["weights"]["kind"]
    source = Path(weights["source"]).name if kind == "file" else weights["source"]
    recipe = {name: value for name, value in summary["recipe"].items() if name not in ("model", "weights", "versions")}
    facts = {"run": run.folder.resolve().name, "photos": len(run), **recipe, **summary["recipe"]["versions"]}
    return {
        "model": printable(summary["model"]),
        "weights": printable(f"{kind} weights, {source}, sha256 {weights['sha256']}"),
        "warning": f"{RANDOM_WEIGHTS}, so similarity means little" if kind == "random" else "",
        "recipe": [
            [name.replace("_", " "), _plain(value)] for name, value in facts.items() if value not in (None, False)
        ],
        "colours": VIRIDIS.astype(int).tolist(),
        "version": __version__,
    }


def _plain(value: Any) -> str:
    """Write a value of a recipe as text."""
    if isinstance(value, dict):
        return ", ".join(
            f"{name.replace('_', ' ')} {_plain(inner)}" for name, inner in value.items() if inner is not None
        )
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return "yes" if value is True else printable(str(value))


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


def _level(plan: Plan, level: Level, packed: Packed) -> dict[str, Any]:
    sizes = {_span(photo, level)[2:] for photo in plan.photos}
    rows, columns = max(sizes)
    return {
        "key": printable(level.key),
        "name": printable(level.name)[:200],
        "channels": level.channels,
        "components": len(packed.scales),
        "stride": spacing(level.stride),
        "cells": f"{'' if len(sizes) == 1 else 'up to '}{rows} \u00d7 {columns}",
        "mean": f"{packed.mean:.4f}",
        "most": f"{packed.largest:.3f}",
        "low": round(packed.low, 4),
    }


def _photo(photo: Shown, jpeg: str, levels: Sequence[Level]) -> dict[str, Any]:
    frame = photo.frame
    return {
        "key": printable(photo.key),
        "input": frame.input,
        "original": frame.original,
        "scale": frame.scale,
        "offset": frame.offset,
        "jpeg": f"data:image/jpeg;base64,{jpeg}" if jpeg else "",
        "cells": [_cells(photo, level) for level in levels],
    }


def _span(photo: Shown, level: Level) -> tuple[int, int, int, int]:
    """Return the first row and column of the cells on a photo, and how many rows and columns there are."""
    rows, columns = cells.valid(photo.frame, level, *photo.maps[level.key].shape[1:])
    return rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start


def _cells(photo: Shown, level: Level) -> dict[str, Any]:
    """Say where the cells on a photo lie: edges and extents in shares of the model's input."""
    row, column, rows, columns = _span(photo, level)
    offset, stride = cells.spacing_of(level)
    width, height = photo.frame.input
    return {
        "rows": rows,
        "columns": columns,
        "left": round((offset[1] + (column - 0.5) * stride[1] + 0.5) / width, 7),
        "top": round((offset[0] + (row - 0.5) * stride[0] + 0.5) / height, 7),
        "across": round(columns * stride[1] / width, 7),
        "down": round(rows * stride[0] / height, 7),
    }


def _opening(photo: Shown, levels: Sequence[Level]) -> int:
    """Choose the level that a page opens with."""
    counts = [packing.cells_on(photo, level) for level in levels]
    fine = [number for number, count in enumerate(counts) if count >= OPENING]
    return fine[-1] if fine else counts.index(max(counts))


def _template() -> str:
    return resources.files("featx.explore").joinpath("page.html").read_text("utf-8")


def _json(value: Any) -> str:
    """Write JSON that may stand in a script: nothing in it can end it, or begin a comment."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _write(path: Path, described: dict[str, Any], levels: Sequence[Packed]) -> int:
    """Write a page, complete or not at all; return its size."""
    pieces = [piece.encode() for piece in _pieces(described, levels)]
    try:
        files.write_atomically(path, pieces)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{path} cannot be written: {reason}", "Free some space, or choose another place") from error
    return sum(map(len, pieces))


def _pieces(described: dict[str, Any], levels: Sequence[Packed]) -> Iterator[str]:
    before, after = _template().split("<!-- payload -->\n")
    yield before.replace("{policy}", _policy(before + after))
    yield f'<script type="application/json" id="page">{_json(described)}</script>\n'
    for number, level in enumerate(levels):
        numbers = b"".join([level.scales.tobytes(), *(values.tobytes() for values in level.values)])
        yield f'<script type="text/plain" id="features-{number}">{base64.b64encode(numbers).decode()}</script>\n'
    yield after


def _policy(template: str) -> str:
    """Allow a browser the page's own style and script, by their hashes, and pictures in the page; and no network."""
    style, script = (re.search(rf"<{name}>(.*?)</{name}>", template, re.DOTALL) for name in ("style", "script"))
    allowed = [
        base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode() for found in (style, script) if found
    ]
    return (
        f"default-src 'none'; style-src 'sha256-{allowed[0]}'; script-src 'sha256-{allowed[1]}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
