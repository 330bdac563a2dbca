# Leftovers: what lies beside the outputs of a run that its manifest does not know; and what is wrong with arrays.
"""What ``featx verify`` finds around a run."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from featx.errors import FeatxError
from featx.runs import formats, parts
from featx.runs.formats import Array
from featx.runs.layout import BASIS, KEPT, LEASE, MANIFEST, SUMMARY, UNFINISHED
from featx.runs.mirror import is_own, mirror_of
from featx.runs.reading import Run
from featx.values import Field

# Bytes of an array that are looked at together.
PART = 1 << 28

# What reading a file that is not an output can raise.
UNSOUND = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, EOFError, zipfile.BadZipFile)


class Leftovers(NamedTuple):
    """Files that are not in the manifest, unrecorded rows in files that are, and the number of temporary files."""

    uncommitted: list[str]
    foreign: list[str]
    unfinished: int


def leftovers(run: Run) -> Leftovers:
    """Look around in the folder of a run, or behind its URL."""
    done = {key: run.output(key) for key in run}
    strays = run.reader.strays(done)
    ours = run.reader.files(set(done.values())) | {SUMMARY, MANIFEST, LEASE} | strays.keys()
    ours |= parts.own_files(run.folder) | ({BASIS} if run.summary["recipe"]["basis"] else set())
    if mirror := mirror_of(run.folder):
        others, unfinished = [name for name in mirror.store.walk() if name not in ours and not is_own(name)], 0
    else:
        others, unfinished = _others(run.folder, ours)
    uncommitted = [path for path in others if _is_output(run, path)]
    rows = [f"{key} in {name}" for name, keys in strays.items() for key in keys]
    foreign = set(others) - set(uncommitted)
    return Leftovers(rows + uncommitted, [path for path in others if path in foreign], unfinished)


def parts_of(values: Array) -> list[Array]:
    """Cut an array into parts, so that what is worked out for one does not take much memory."""
    return np.array_split(values, 1 + values.nbytes // PART)


def fault_of_arrays(arrays: Mapping[str, Array], fields: Sequence[Field]) -> str:
    """Say how arrays differ from those that a run has of every image; empty if they do not."""
    names = [expected.key for expected in fields]
    if list(arrays) != names:
        return f"holds {', '.join(arrays)}, not {', '.join(names)}"
    for expected in fields:
        values = arrays[expected.key]
        dtype = "text" if values.dtype.kind == "U" else str(values.dtype)
        if not expected.fits(values.shape) or dtype != expected.dtype:
            return f"{expected.key} is {dtype} {values.shape}, not {expected.dtype} {expected.shape}"
        if dtype != "text" and not all(np.isfinite(part).all() for part in parts_of(values)):
            return f"{expected.key} holds NaN or infinity"
    return ""


def _others(folder: Path, ours: set[str]) -> tuple[list[str], int]:
    """Find the files of a folder that are not ours, and count the temporary ones."""
    places = {home / UNFINISHED for home in (folder, *parts.found(folder).values())}
    others: list[str] = []
    unfinished = 0
    for place, _, names in os.walk(folder):
        where = Path(place).relative_to(folder)
        if not places.isdisjoint((Path(place), *Path(place).parents)):
            unfinished += len(names) - (KEPT in names)
        else:
            others += sorted(path for name in names if (path := (where / name).as_posix()) not in ours)
    return others, unfinished


def _is_output(run: Run, path: str) -> bool:
    """Whether a file could be an output of the run that is not in the manifest."""
    row = formats.FORMATS[run.summary["recipe"]["format"]]
    if row.shared or not path.endswith(row.suffix):
        return False
    try:
        return not fault_of_arrays(run.reader.read("", path), run.fields)
    except (FeatxError, *UNSOUND):
        return False
