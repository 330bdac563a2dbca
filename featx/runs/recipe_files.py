# Recipes as options: those of an earlier run, and those in a file, beside which typed options win.
"""What ``--like`` and ``--recipe`` read, and what ``featx info RUN --recipe`` prints."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from featx.declaring import converted, declared
from featx.errors import UsageError
from featx.nearest import did_you_mean
from featx.options import GROUPS, OutputOptions
from featx.paths import absolute
from featx.requests import ONE
from featx.run_options import RecipeOptions
from featx.runs.layout import BASIS
from featx.runs.summary import require_summary

# Options that a file may hold: all but where a run is written and on which machines, which is decided call by call.
NAMES = {each.name: each for group in GROUPS if group not in (OutputOptions, RecipeOptions) for each in declared(group)}

# Options that take the place of others, which contradict them.
REPLACE = {
    "out_indices": ("strides",),
    "strides": ("out_indices",),
    "image_size": ("test_size",),
    "test_size": ("image_size",),
    "fit": ("crop_pct", "max_side", "tile", "halo", "level_mpp"),
    "max_side": ("tile", "halo", "level_mpp"),
    "tile": ("max_side", "halo"),
    "model": ("weights", "seed"),
    "weights": ("seed",),
    "components": ("fit_on", "basis"),
    "fit_on": ("basis",),
    "basis": ("fit_on",),
}


def completed_by_recipe(typed: Mapping[str, Any]) -> dict[str, Any]:
    """Add the options of ``like`` or ``recipe`` to those that were typed, which win.

    Raises
    ------
    FeatxError
        If the run or the file cannot be read, or no model is named anywhere.
    """
    like, file = typed.get("like"), typed.get("recipe")
    if like is not None and file is not None:
        raise UsageError("--like and --recipe both give the recipe", ONE)
    found = options_of_run(like) if like is not None else options_of_file(file) if file is not None else {}
    replaced = {name for each in typed for name in REPLACE.get(each, ())}
    options = {**{name: value for name, value in found.items() if name not in replaced}, **typed}
    if options.get("model") is None:
        raise UsageError("extract needs --model NAME", "Example: featx extract photos/ --model resnest26d")
    return options


def options_of_run(folder: str | PathLike[str]) -> dict[str, Any]:
    """Read the options that a run was made with, without those that were left at their defaults.

    Raises
    ------
    FeatxError
        If the folder is not a run, or the options are unknown.
    """
    return _options_of(folder, require_summary(folder))


def _options_of(folder: str | PathLike[str], summary: dict[str, Any]) -> dict[str, Any]:
    options = {name: value for name, value in summary.get("options", {}).items() if value is not None}
    if not options:
        raise UsageError(
            f"{folder} was written by an earlier featx, which did not record its options", "Type them instead"
        )
    if unknown := options.keys() - NAMES.keys():
        raise UsageError(f"{folder} was made with --{min(unknown)}, which this featx does not have", "Update featx")
    if summary["recipe"]["basis"]:
        options = {**options, "fit_on": None, "basis": absolute(f"{folder}/{BASIS}")}
    # Maps are kept wherever the format can hold them.
    return {
        name: value
        for name, value in options.items()
        if value != NAMES[name].default and (name, value) != ("maps", True)
    }


def options_of_file(path: str | PathLike[str]) -> dict[str, Any]:
    """Read options from a TOML file: ``image_size = 384``, or ``image-size = 384``.

    Raises
    ------
    UsageError
        If it cannot be read, or one of its keys or values is wrong, which it names.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"The recipe {path} cannot be read: {error.strerror}", "Check the path") from error
    except ValueError as error:
        raise UsageError(
            f"The recipe {path} is not TOML: {error}", "Write NAME = VALUE on each line, with texts in quotes"
        ) from error
    options: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in NAMES:
            hint = did_you_mean(name, NAMES) or "featx extract --help lists the options"
            raise UsageError(f"The recipe {path} has {key!r}, which is not an option of a recipe", hint)
        if name in options:
            raise UsageError(f"The recipe {path} has {name!r} twice", ONE)
        options[name] = converted(NAMES[name], value, f"{path}: {key}")
    return options


def recipe_text(folder: str | PathLike[str]) -> str:
    """Write the options that a run was made with as such a file, after comments that say what they came to."""
    summary = require_summary(folder)
    options = _options_of(folder, summary)
    recipe, weights = summary["recipe"], summary["weights"]
    versions = ", ".join(f"{name} {version}" for name, version in recipe["versions"].items())
    chosen = {"batch_size": recipe["batch_size"]} if "batch_size" not in summary.get("unchosen", ()) else {}
    comments = (
        f"The recipe of {folder}, for featx extract --recipe.",
        f"Weights: {weights['kind']}, sha256 {weights['sha256']}",
        f"Batches of {recipe['batch_size']} on {recipe['device']}, threads of each pass: {recipe['threads']}",
        f"Versions: {versions}",
    )
    lines = [f"# {' '.join(text.split())}" for text in comments]
    return "\n".join([*lines, *(f"{name} = {_toml(value)}" for name, value in {**options, **chosen}.items())]) + "\n"


def _toml(value: Any) -> str:
    """Write a text, a number, a truth value or a list of them; JSON differs from TOML in one character of texts."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
