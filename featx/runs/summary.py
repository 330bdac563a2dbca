# A run's summary.json: read, checked and completed, and held against the recipe of a new call.
"""The file that says what a run is."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from featx import options
from featx.errors import FeatxError, OutputError
from featx.runs.layout import SUMMARY
from featx.values import Field, Level

FORMAT = 1

# What every summary has.
FACTS: dict[str, Any] = {
    "state": str,
    "model": str,
    "weights": dict,
    "levels": list,
    "input": dict,
    "recipe": dict,
    "counts": dict,
    "seconds": int | float,
}

ELSEWHERE = "Check the folder, or choose another one; featx changes nothing that may not be its own"


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Read the summary; None where there is none.

    Raises
    ------
    OutputError
        If it is there but not readable, or of a later format.
    """
    try:
        summary = json.loads((folder / SUMMARY).read_bytes())
        written_as = summary["featx_format"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{folder / SUMMARY} is no summary of featx's", ELSEWHERE) from error
    if written_as != FORMAT:
        raise OutputError(
            f"{folder} was written in format {written_as}, which this featx does not know", "Update featx"
        )
    missing = [fact for fact, kind in FACTS.items() if not isinstance(summary.get(fact), kind)]
    if missing:
        raise OutputError(f"{folder / SUMMARY} is damaged: it says nothing of its {missing[0]}", ELSEWHERE)
    return _sound(folder, summary)


def _sound(folder: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Complete a summary, and make sure that everything is in it that is read of it later.

    Raises
    ------
    OutputError
        Naming what is missing, or is not what it should be.
    """
    part = "levels"
    try:
        summary = _completed(summary)
        for part, check in PARTS.items():  # noqa: B007 - named where it fails
            check(summary)
    except KeyError as error:
        raise OutputError(f"{folder / SUMMARY} is damaged: {part} lacks {error.args[0]!r}", ELSEWHERE) from error
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise OutputError(f"{folder / SUMMARY} is damaged: {part} cannot be read", ELSEWHERE) from error
    return summary


def _check_levels(summary: dict[str, Any]) -> None:
    for level in (*summary["levels"], *([summary["final"]] if "final" in summary else [])):
        Level.from_json(level)
        np.dtype(level["dtype"])


def _check_arrays(summary: dict[str, Any]) -> None:
    for value in summary["arrays"]:
        field = Field.from_json(value)
        np.dtype(field.dtype)
        if not isinstance(field.key, str) or not all(isinstance(side, int) for side in field.shape):
            raise TypeError


def _check_counts(summary: dict[str, Any]) -> None:
    if not all(isinstance(summary["counts"][name], int) for name in ("done", "failed", "total")):
        raise TypeError


def _check_recipe(summary: dict[str, Any]) -> None:
    _has("recipe", RECIPE)(summary)
    recipe = summary["recipe"]
    numbers = (recipe["batch_size"], recipe["threads"])
    if not isinstance(recipe["levels"], list) or not all(isinstance(number, int) for number in numbers):
        raise TypeError
    if recipe["precision"] not in options.PRECISIONS or recipe["dtype"] not in options.DTYPES or min(numbers) < 1:
        raise ValueError


def _has(part: str, names: Collection[str]) -> Callable[[dict[str, Any]], None]:
    """Return a check that a part of a summary has all names."""

    def check(summary: dict[str, Any]) -> None:
        for name in names:
            summary[part][name]

    return check


# What a recipe must say.
RECIPE = ("model", "weights", "levels", "device", "batch_size", "threads", "versions", *options.RECIPE)

# Of a summary, what is read later, and what makes sure of it.
PARTS: dict[str, Callable[[dict[str, Any]], None]] = {
    "levels": _check_levels,
    "arrays": _check_arrays,
    "counts": _check_counts,
    "weights": _has("weights", ("kind", "source", "sha256")),
    "input": _has("input", ("height", "width", "configuration")),
    "recipe": _check_recipe,
}


def _completed(summary: dict[str, Any]) -> dict[str, Any]:
    """Add what runs did not say as long as there were nothing but levels in files of their own."""
    arrays = [
        {
            "key": f"level_{level['index']}",
            "shape": [level["channels"], level["height"], level["width"]],
            "dtype": level["dtype"],
        }
        for level in summary["levels"]
    ]
    recipe = {**options.RECIPE, **summary["recipe"]}
    return {"source": "timm", "arrays": arrays, **summary, "recipe": recipe}


def require_summary(folder: Path) -> dict[str, Any]:
    """Read the summary of a folder that has to be a run's.

    Raises
    ------
    FeatxError
        If it has no summary, or none that can be read.
    """
    summary = read_summary(folder)
    if summary is None:
        raise FeatxError(f"{folder} is no run of featx: it has no {SUMMARY}", "Give the folder that holds one")
    return summary
