# A run's summary.json: written, and read: completed with what earlier featx did not say, and checked by its schema.
"""The file that says what a run is."""

from __future__ import annotations

import json
from contextlib import suppress
from os import PathLike, fspath
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from msgspec import Meta, Struct, convert, defstruct

from featx import dtypes, files, options
from featx.errors import FeatxError, OutputError
from featx.images.locators import recognised
from featx.paths import is_url
from featx.requests import Job
from featx.run_options import PRECISIONS
from featx.runs.layout import SUMMARY
from featx.stores import Store
from featx.values import Field, Input, Level, Weights

FORMAT = 1

# The field of a run that is divided, with what each of its shards has added.
SHARDS = "shards"

ELSEWHERE = "Check the folder, or choose another one; featx changes only what it has written"

Dtype = Literal[dtypes.NAMES]  # type: ignore[valid-type]
AtLeastOne = Annotated[int, Meta(ge=1)]


class StoredLevel(Level, frozen=True, kw_only=True):
    """A level, and what its maps are written as."""

    dtype: Dtype


class StoredField(Field, frozen=True):
    """An array, and what it is written as."""

    dtype: Literal[Dtype, "float64", "text"]


class Counts(Struct, frozen=True):
    """Images of a run by what became of them; what is missing in the total was not tried yet."""

    done: int
    failed: int
    total: int


def _recipe_type() -> Any:
    """Make the type of recipes: what the options came to, and every option that is said to be in it."""
    of_options = get_type_hints(Job) | {
        "precision": Literal[PRECISIONS],
        "dtype": Dtype,
        "boxes": str | None,
        "basis": str | None,
    }
    came_to = {
        "model": str,
        "weights": str,
        "levels": list[int],
        "device": str,
        "batch_size": AtLeastOne,
        "threads": AtLeastOne,
        "versions": dict[str, str],
    }
    return defstruct("Recipe", [*came_to.items(), *((name, of_options[name]) for name in options.RECIPE)], frozen=True)


Recipe: Any = _recipe_type()


class Summary(Struct, frozen=True):
    """What is read of a summary; it may say more."""

    state: str
    model: str
    source: str
    weights: Weights
    levels: tuple[StoredLevel, ...]
    arrays: tuple[StoredField, ...]
    input: Input
    recipe: Recipe
    counts: Counts
    seconds: float
    options: dict[str, Any] = {}
    architecture: str = ""
    final: StoredLevel | None = None
    modules: tuple[StoredLevel, ...] = ()
    unchosen: tuple[str, ...] = ()


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Read the summary; None where there is none.

    Returns
    -------
    dict or None
        As it is in the file, completed with what earlier featx did not say; it conforms to `Summary`.

    Raises
    ------
    OutputError
        If it is there but damaged, which names the field, or of a later format.
    """
    path = folder / SUMMARY
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OutputError(f"{path} was not written by featx", ELSEWHERE) from error
    return _parsed(data, str(folder))


def _parsed(data: bytes, folder: str) -> dict[str, Any]:
    path = f"{folder}/{SUMMARY}"
    try:
        summary = json.loads(data)  # which takes names that are not UTF-8, as paths of models may be
        written_as = summary["featx_format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise OutputError(f"{path} was not written by featx", ELSEWHERE) from error
    if written_as != FORMAT:
        raise OutputError(
            f"{folder} was written in format {written_as}, which this version of featx cannot read", "Update featx"
        )
    summary = _completed(summary)
    try:
        convert(summary, Summary)
    except ValueError as error:  # msgspec's, which names the field, or of a text that is not UTF-8
        raise OutputError(f"{path} is damaged: {error}", ELSEWHERE) from error
    return summary


def _completed(summary: dict[str, Any]) -> dict[str, Any]:
    """Add what runs did not say as long as there were nothing but levels in files of their own."""
    with suppress(KeyError, TypeError):  # it is damaged, and the schema names the field
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
    return summary


def write_summary(folder: Path, summary: dict[str, Any], unfinished: Path) -> None:
    """Replace the summary; `unfinished` is where it is written before it gets its name."""
    text = json.dumps(summary, indent=2) + "\n"
    files.write_atomically(folder / SUMMARY, [text.encode()], unfinished / SUMMARY)


def require_summary(folder: str | PathLike[str]) -> dict[str, Any]:
    """Read the summary of a folder, or behind a URL, that must be a run.

    Raises
    ------
    FeatxError
        If it is not a folder, or has no readable summary.
    """
    place = fspath(folder)
    if is_url(place):
        data = Store.of(place).read(SUMMARY)
        summary = None if data is None else _parsed(data, place)
    elif Path(place).is_file():
        what = recognised(place) or "a file"
        raise FeatxError(f"{folder} is {what}, not a featx run", "Give a folder that featx extract has written")
    else:
        summary = read_summary(Path(place))
    if summary is None:
        raise FeatxError(
            f"{folder} is not a featx run: it has no {SUMMARY}", "Give a folder that featx extract has written"
        )
    return summary
