# Payload: what the script of a page reads, as JSON and base64, and the page around it.
"""From photos and packed features to the text of a page."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from featx.explore import packing
from featx.explore.colours import VIRIDIS
from featx.explore.packing import Packed
from featx.explore.shown import Shown
from featx.images import cells
from featx.runs.reading import Run
from featx.text import printable, spacing
from featx.values import RANDOM_SIMILARITY, Level

# A page opens with the last level that has at least so many cells in a photo: coarser ones show little.
OPENING = 144


def about(run: Run) -> dict[str, Any]:
    """Return what a page says about a run: the model, its weights and the recipe."""
    summary = run.summary
    weights, kind = summary["weights"], summary["weights"]["kind"]
    source = Path(weights["source"]).name if kind == "file" else weights["source"]
    recipe = {name: value for name, value in summary["recipe"].items() if name not in ("model", "weights", "versions")}
    facts = {
        "weights": f"sha256 {weights['sha256']}",
        **recipe,
        **summary["recipe"]["versions"],
    }
    return {
        "model": printable(summary["model"]),
        "weights": printable(f"{kind} weights, {source}, sha256 {weights['sha256'][:12]}…"),
        "warning": RANDOM_SIMILARITY if kind == "random" else "",
        "recipe": [[_words(name), _plain(value)] for name, value in facts.items() if value not in (None, False)],
        "colours": VIRIDIS.astype(int).tolist(),
    }


def _plain(value: Any) -> str:
    """Write a value of a recipe as text."""
    if isinstance(value, dict):
        return ", ".join(f"{_words(name)} {_plain(inner)}" for name, inner in value.items() if inner is not None)
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return "yes" if value is True else printable(str(value))


def _words(name: str) -> str:
    return printable(name.replace("_", " "))


def described(
    photos: Sequence[Shown], jpegs: Sequence[str], levels: Sequence[Level], packed: Mapping[str, Packed]
) -> dict[str, Any]:
    """Return what a page says about its levels and photos."""
    return {
        "levels": [_level(photos, level, packed[level.key]) for level in levels],
        "photos": [_photo(photo, jpeg, levels) for photo, jpeg in zip(photos, jpegs, strict=True)],
        "start": _opening(photos[0], levels),
    }


def _level(photos: Sequence[Shown], level: Level, packed: Packed) -> dict[str, Any]:
    sizes = {_span(photo, level)[2:] for photo in photos}
    rows, columns = max(sizes)
    return {
        "key": printable(level.key),
        "name": printable(level.name)[:200],
        "channels": level.channels,
        "components": len(packed.scales),
        "stride": spacing(level.stride),
        "cells": f"{'' if len(sizes) == 1 else 'up to '}{rows} \u00d7 {columns}",
        "mean": f"{packed.cost.mean:.4f}",
        "most": f"{packed.cost.largest:.3f}",
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
    rows, columns = photo.region(level)
    return rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start


def _cells(photo: Shown, level: Level) -> dict[str, Any]:
    """Say where the cells on a photo lie: edges and extents in shares of the model's input."""
    row, column, rows, columns = _span(photo, level)
    offset, stride = cells.spacing_of(photo.placed[level.key])
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


def template() -> str:
    """Return the page without its data."""
    return resources.files("featx.explore").joinpath("page.html").read_text("utf-8")


def as_json(value: Any) -> str:
    """Write JSON for a script element: nothing in it can end the element or begin a comment."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def pieces(described: dict[str, Any], levels: Collection[Packed]) -> Iterator[str]:
    """Return the text of a page, piece by piece."""
    before, after = template().split("<!-- payload -->\n")
    yield before.replace("{policy}", _policy(before + after))
    yield f'<script type="application/json" id="page">{as_json(described)}</script>\n'
    for number, level in enumerate(levels):
        numbers = b"".join([level.scales.tobytes(), *(values.tobytes() for values in level.values)])
        yield f'<script type="text/plain" id="features-{number}">{base64.b64encode(numbers).decode()}</script>\n'
    yield after


def _policy(text: str) -> str:
    """Allow the page's own style and script, by their hashes, and embedded pictures; but no network."""
    return (
        f"default-src 'none'; style-src '{_hash(text, 'style')}'; script-src '{_hash(text, 'script')}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str, name: str) -> str:
    """Return the hash by which a browser knows the one style, or the one script, of the template."""
    content = text.split(f"<{name}>")[1].split(f"</{name}>", maxsplit=1)[0]
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
