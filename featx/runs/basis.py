# The basis of a run's components: a file in its folder, which is read, checked and applied.
"""``basis.npz``: for each level that is projected, the mean of its channels and its first principal components.

==========================  =========================================================================
``level_2_mean``            (C,) float32, which is subtracted first
``level_2_components``      (k, C) float32, orthonormal rows; the largest entry of each is positive
``level_2_variance``        (k,) float64, the variance along each
``level_2_share``           (k,) float64, its share of the variance of all channels
``fitted``                  JSON: on which network, how many images, and how many cells of each level
==========================  =========================================================================

Only the first two are needed: any program may write such a file.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from featx import files
from featx.errors import ROOM, FeatxError, OutputError, UsageError
from featx.paths import without_query
from featx.requests import Job
from featx.runs.formats import Array
from featx.runs.layout import BASIS
from featx.runs.recipe import Model
from featx.stores import Store
from featx.values import Level

FITTED = "fitted"

# Bytes that the arrays of a basis may have: a hundred levels of the widest networks.
LARGEST = 4 << 30


class Projection(NamedTuple):
    """The basis of one level: (C,) mean and (k, C) components, float32."""

    mean: Array
    components: Array


@dataclass(frozen=True, slots=True)
class Basis:
    """A basis, as it is in a file.

    Attributes
    ----------
    content : bytes
        The file.
    sha256 : str
        Of the file.
    projections : dict of str to Projection
        By the names of the levels' arrays.
    network : dict
        What it was fitted on, as `network_of` has it; empty if the file does not say.
    """

    content: bytes
    sha256: str
    projections: dict[str, Projection]
    network: dict[str, Any]

    def require(self, levels: Iterable[Level], components: int, network: Mapping[str, Any], place: object) -> None:
        """Refuse a basis that does not fit a network's levels.

        Raises
        ------
        UsageError
            Naming what does not fit.
        """
        hint = "Give a basis of the same model, or fit one without --basis"
        for name, there in self.network.items():
            if there != network.get(name):
                raise UsageError(f"The components in {place} were fitted on a network with other {name}", hint)
        for level in levels:
            if level.channels <= components:
                continue
            found = self.projections.get(level.key)
            if found is None:
                raise UsageError(f"{place} has no components of {level.key}", hint)
            if len(found.mean) != level.channels:
                channels = f"{len(found.mean)} channels, not {level.channels}"
                raise UsageError(f"The components of {level.key} in {place} have {channels}", hint)
            if len(found.components) < components:
                count = f"{len(found.components)} components of {level.key}, fewer than {components}"
                raise UsageError(f"{place} has {count}", "Use a smaller --components, or fit them without --basis")

    def save(self, folder: Path, unfinished: Path) -> None:
        """Put the file into a run's folder, unless it is there; `unfinished` is where it is written first.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        if not fault_of(folder, self.sha256):
            return
        try:
            files.write_atomically(folder / BASIS, [self.content], unfinished / BASIS)
        except OSError as error:
            raise OutputError(f"{folder / BASIS} cannot be written: {error.strerror}", ROOM) from error

    def of(self, key: str, components: int) -> Projection | None:
        """Return the first components of a level; None if it keeps its channels."""
        found = self.projections.get(key)
        if found is None or len(found.mean) <= components:
            return None
        return Projection(found.mean, found.components[:components])

    def unprojected(self, key: str, components: int, values: Array) -> Array:
        """Return features of a level to its channels; see `featx.runs.reading.Run.unproject`."""
        found = self.of(key, components)
        if found is None:
            return values
        axis = -1 if values.ndim < 3 else -3
        if values.shape[axis] != components:
            raise UsageError(
                f"Expected features of {key} with {components} components, not of shape {values.shape}",
                "Give arrays (C, H, W), (B, C, H, W), (C,) or (P, C)",
            )
        rows = np.moveaxis(values, axis, -1) @ found.components + found.mean
        return np.moveaxis(rows, -1, axis)


def network_of(pyramid: Model, job: Job) -> dict[str, Any]:
    """Return the facts that tell networks apart whose features have components of their own."""
    return {
        "architecture": pyramid.architecture,
        "weights": pyramid.weights.identity,
        "norm": job.norm,
        "output_stride": job.output_stride,
    }


def packed(arrays: Mapping[str, Array], fitted: Mapping[str, Any]) -> Basis:
    """Make the file of a basis that was fitted, and return it as a basis."""
    file = io.BytesIO()
    np.savez(file, **arrays, **{FITTED: np.array([json.dumps(fitted, sort_keys=True)])})  # type: ignore[arg-type]
    return _basis(file.getvalue())


def read(place: Path | str) -> Basis:
    """Read the basis of a run, or a file; either may be behind a URL.

    Raises
    ------
    FeatxError
        If there is none, or it is damaged.
    """
    try:
        return _basis(_content(place))
    except OSError as error:
        raise FeatxError(f"{shown(place)} cannot be read: {error.strerror or error}", "Check the path") from error
    except (ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise FeatxError(f"{shown(place)} holds no basis, or it is damaged: {error}", "Give another one") from error


def shown(place: Path | str) -> Path | str:
    """Return what messages call a basis: a URL without its query, which may be a secret."""
    return place if isinstance(place, Path) else without_query(place)


def _content(place: Path | str) -> bytes:
    """Read the file of a basis, or that of a run.

    Raises
    ------
    OSError, FeatxError
        If it cannot be read.
    """
    plain = str(shown(place))
    of_run = place.is_dir() if isinstance(place, Path) else not plain.endswith(".npz")
    if isinstance(place, Path):
        path = place / BASIS if of_run else place
        content = path.read_bytes() if path.exists() else None
    else:
        folder, _, name = (f"{plain.rstrip('/')}/{BASIS}" if of_run else plain).rpartition("/")
        content = Store.of(folder).read(name + place[len(plain) :])  # with its query
    if content is None:
        where = f"{plain} has no {BASIS}" if of_run else f"There is no basis {plain}"
        raise UsageError(where, "Give a run that was made with --components, or its basis.npz")
    return content


def stored(folder: Path, sha256: str | None) -> Basis:
    """Read the basis of a run, which must be the one in its recipe.

    Raises
    ------
    OutputError
        If it is missing or was changed.
    """
    if fault := fault_of(folder, sha256):
        raise OutputError(
            f"The {BASIS} of {folder} {fault}, so no more photos can be projected as the others were",
            "Restore the file, or start from scratch with --overwrite",
        )
    return read(folder)


def fault_of(folder: Path, sha256: str | None) -> str:
    """Say what is wrong with the basis of a run, compared with its recipe; empty if nothing is."""
    try:
        content = (folder / BASIS).read_bytes()
    except OSError as error:
        return "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
    return "" if hashlib.sha256(content).hexdigest() == sha256 else "was changed: its sha256 differs"


def _basis(content: bytes) -> Basis:
    """Read the content of a file.

    Raises
    ------
    ValueError, LookupError, TypeError, OSError, zipfile.BadZipFile
        If it is not a basis.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(member.file_size for member in archive.infolist()) > LARGEST:
            raise ValueError("it is larger than any basis")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    keys = [name.removesuffix("_components") for name in arrays if name.endswith("_components")]
    if not keys:
        raise ValueError("it holds no components")
    given = {key: (arrays[f"{key}_mean"], arrays[f"{key}_components"]) for key in keys}
    for key, (mean, components) in given.items():
        if mean.ndim != 1 or components.ndim != 2 or components.shape[1] != len(mean):
            raise ValueError(f"the components of {key} are {components.shape}, and its mean {mean.shape}")
        if not (np.isfinite(mean).all() and np.isfinite(components).all()):
            raise ValueError(f"the components of {key} hold NaN or infinity")
    exact = {key: Projection(*(np.ascontiguousarray(each, np.float32) for each in pair)) for key, pair in given.items()}
    fitted = json.loads(str(arrays[FITTED][0])) if FITTED in arrays else {}
    return Basis(content, hashlib.sha256(content).hexdigest(), exact, fitted.get("network", {}))
