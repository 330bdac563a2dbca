# Packing: features as a few 8-bit components that preserve their cosines, and the error that this causes.
"""Principal components of directions, quantised; in numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from featx.explore.colours import limits
from featx.explore.shown import Shown
from featx.runs.formats import Array
from featx.values import Level

# The most cells of a level that the components are fitted on, and the most of which all pairs are compared.
FITTED, COMPARED = 4096, 512


@dataclass(frozen=True, slots=True)
class Basis:
    """The directions that matter most to the cosines of a level's features, joint over all photos.

    Features are scaled to length 1 first, and not centred: their products are then the cosines.

    Attributes
    ----------
    vectors : array
        (C, k) float32, orthonormal, the one that matters most first.
    lost : array
        (k,) float64: the share of the squared length that the components up to each one leave out, falling.
    """

    vectors: Array
    lost: Array

    def needed(self, lost: float) -> int:
        """Return how many components leave out at most that share."""
        return min(int((self.lost > lost).sum()) + 1, len(self.lost))


@dataclass(frozen=True, slots=True)
class Cost:
    """How far cosines of packed features lie from those of the features themselves.

    Attributes
    ----------
    components : int
        How many numbers a cell has.
    mean, largest : float
        The mean and the largest absolute difference of cosines, over all pairs of a sample of cells.
    pairs : int
        How many pairs those were.
    """

    components: int
    mean: float
    largest: float
    pairs: int


@dataclass(frozen=True, slots=True)
class Packed:
    """A level's features, packed.

    Attributes
    ----------
    scales : array
        (k,) float32: what a component's numbers are multiplied by.
    values : list of array
        Of each photo: (cells, k) int8, cells row by row.
    cost : Cost
        What that costs.
    low : float
        The cosine that 1 % of pairs of cells lie below.
    """

    scales: Array
    values: list[Array]
    cost: Cost
    low: float


def fit(photos: Sequence[Shown], level: Level) -> Basis:
    """Find the components of a level's features in all photos."""
    most = max(1, FITTED // len(photos))
    sample = np.concatenate([_evenly(directions(photo, level), most) for photo in photos]).astype(np.float64)
    few = len(sample) < sample.shape[1]  # fewer cells than channels, whose products make the smaller matrix
    values, vectors = np.linalg.eigh(sample @ sample.T if few else sample.T @ sample)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    kept = max(1, int((values > values[:1].sum() * 1e-12).sum()))
    values, vectors = values[:kept], vectors[:, :kept]
    if few:
        vectors = sample.T @ vectors / np.sqrt(np.maximum(values, np.finfo(float).tiny))
    lost = 1 - np.cumsum(values) / (values.sum() or 1)
    return Basis(vectors.astype(np.float32), lost)


def pack(photos: Sequence[Shown], level: Level, basis: Basis, count: int) -> Packed:
    """Reduce a level's features to so many components of a basis, in 8 bits each, and measure what that costs."""
    vectors = basis.vectors[:, :count]
    picks = _picks([cells_on(photo, level) for photo in photos])
    projected, full = [], []
    for photo, picked in zip(photos, picks, strict=True):
        rows = directions(photo, level)
        projected.append(rows @ vectors)
        full.append(rows[picked])
    scales = np.max([np.abs(each).max(0, initial=0) for each in projected], axis=0) / 127
    scales = np.where(scales > 0, scales, 1).astype(np.float32)
    values = [np.rint(each / scales).clip(-127, 127).astype(np.int8) for each in projected]
    reduced = _unit(np.concatenate([each[picked] for each, picked in zip(values, picks, strict=True)]) * scales)
    return _measured(scales, values, np.concatenate(full), reduced)


def cells_on(photo: Shown, level: Level) -> int:
    """Return how many of a level's cells are centred on a photo."""
    rows, columns = photo.region(level)
    return int(rows.stop - rows.start) * int(columns.stop - columns.start)


def directions(photo: Shown, level: Level) -> Array:
    """Return the features of the cells on a photo, scaled to length 1: (cells, C) float32; zeros stay zeros."""
    return _unit(photo.valid(level))


def _measured(scales: Array, values: list[Array], full: Array, reduced: Array) -> Packed:
    pairs = np.triu_indices(len(full), 1)
    cosines = (full @ full.T)[pairs]
    if not len(cosines):  # one cell
        return Packed(scales, values, Cost(len(scales), 0.0, 0.0, 0), 0.0)
    differences = np.abs((reduced @ reduced.T)[pairs] - cosines)
    cost = Cost(len(scales), float(differences.mean()), float(differences.max()), len(cosines))
    return Packed(scales, values, cost, min(limits(cosines)[0], 0.99))


def _picks(counts: Sequence[int]) -> list[Array]:
    """Choose cells at random, always the same ones: their places in each photo."""
    total = sum(counts)
    chosen = np.sort(np.random.default_rng(0).permutation(total)[:COMPARED])
    starts = np.cumsum([0, *counts])
    return [chosen[(start <= chosen) & (chosen < end)] - start for start, end in pairwise(starts)]


def _evenly(rows: Array, most: int) -> Array:
    """Return at most so many rows, evenly spaced."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)] if len(rows) else rows


def _unit(rows: Array) -> Array:
    lengths = np.sqrt(np.einsum("nc,nc->n", rows, rows))[:, None]
    found: Array = rows / np.where(lengths > 0, lengths, 1)
    return found
