# Fitting: the principal components of a run's maps, exactly, from the images that come first.
"""From the cells of many maps to a basis.

Means and covariances are summed in double precision, image by image in the order of the images, so that a basis depends
neither on the number of workers nor on which of them is first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from featx.engine.pooling import Grid
from featx.engine.reducing import Photo, Reduction, Values
from featx.errors import UsageError
from featx.images.cells import Array
from featx.images.grid import on_photo, pooled
from featx.runs.basis import Basis, packed
from featx.text import count_of, images
from featx.values import Field, Level


@dataclass(frozen=True, slots=True)
class Cells(Reduction):
    """Take a map apart into the features of its cells, (n, C): those that lie on the photo, or all if none does.

    Attributes
    ----------
    levels : mapping of int to Level
        The levels of the maps to be taken apart, as the network has them, by their places; nothing else comes out.
    grid : Grid or None
        What maps are pooled to first.
    """

    levels: Mapping[int, Level]
    grid: Grid | None

    def fields(self, _: Sequence[Field]) -> list[Field]:
        """Return a (n, C) array for each map."""
        return [Field(level.key, (None, level.channels), "float32") for level in self.levels.values()]

    def level(self, level: Level) -> Level:
        """Return the level itself."""
        return level

    def __call__(self, values: Sequence[Values], photos: Sequence[Photo]) -> list[Values]:
        """Take the maps of a batch apart; blanks are left out."""
        return [self._apart(values[place], level, photos) for place, level in self.levels.items()]

    def _apart(self, values: Any, level: Level, photos: Sequence[Photo]) -> tuple[Tensor, ...]:
        size = values.shape[-2:]
        if self.grid:
            values, level = self.grid.pooled(values, level, photos), pooled(level, tuple(size), self.grid.size)
        places = (on_photo(photo.frame, level, tuple(values.shape[-2:])) for photo in photos)
        return tuple(
            image[:, rows, columns].flatten(1).T.float() for image, (rows, columns) in zip(values, places, strict=False)
        )


class Covariance:
    """The mean and the covariance of many vectors, (C,) and (C, C), exact to double precision."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean = np.zeros(channels)
        self._scatter = np.zeros((channels, channels))

    def add(self, rows: Array) -> None:
        """Add (n, C) vectors (Chan, Golub and LeVeque, 1979)."""
        exact = rows.astype(np.float64)
        mean = exact.mean(axis=0)
        exact -= mean
        self._merge(len(rows), mean, exact.T @ exact)

    def merge(self, other: Covariance) -> None:
        """Add the vectors of another one."""
        self._merge(other.count, other.mean, other._scatter)

    def _merge(self, count: int, mean: Array, scatter: Array) -> None:
        total, shift = self.count + count, mean - self.mean
        self._scatter += scatter
        self._scatter += np.outer(shift, shift * (self.count * count / total))
        self.mean += shift * (count / total)
        self.count = total

    @property
    def shape(self) -> tuple[int, int]:
        """(C, C)."""
        return len(self.mean), len(self.mean)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.mean.nbytes + self._scatter.nbytes

    def components(self, count: int) -> tuple[Array, Array, Array]:
        """Return the first principal components.

        Returns
        -------
        components : array
            (count, C): orthonormal, the largest entry of each positive.
        variance, share : array
            (count,): the variance along each, and its share of the whole.
        """
        values, vectors = np.linalg.eigh(self._scatter / (self.count - 1))
        variance = np.maximum(values[::-1], 0)
        found = vectors.T[::-1][:count]
        largest = np.take_along_axis(found, np.abs(found).argmax(axis=1)[:, None], axis=1)
        whole = variance.sum()
        return found * np.where(largest < 0, -1, 1), variance[:count], variance[:count] / (whole or 1.0)


class Fit:
    """A basis in the making, for levels with more channels than components."""

    def __init__(self, levels: Sequence[Level], components: int) -> None:
        self._components, self._images = components, 0
        self._found = {level.key: Covariance(level.channels) for level in levels}

    def add(self, cells: Mapping[str, Array | Covariance]) -> None:
        """Add the cells of an image for each level: (n, C), or the covariance of those of a large picture."""
        self._images += 1
        for key, covariance in self._found.items():
            found = cells[key]
            if isinstance(found, Covariance):
                covariance.merge(found)
            else:
                covariance.add(found)

    def basis(self, network: Mapping[str, Any]) -> Basis:
        """Return the basis of what was added, fitted on a network of these facts.

        Raises
        ------
        UsageError
            If that is too little.
        """
        arrays: dict[str, Array] = {}
        for key, found in self._found.items():
            require_cells(self._images, found.count, key, self._components)
            components, variance, share = found.components(self._components)
            arrays |= {
                f"{key}_mean": found.mean.astype(np.float32),
                f"{key}_components": np.ascontiguousarray(components, np.float32),
                f"{key}_variance": variance,
                f"{key}_share": share,
            }
        cells = {key: found.count for key, found in self._found.items()}
        return packed(arrays, {"network": dict(network), "images": self._images, "cells": cells})


def require_cells(count: int, cells: int, key: str, components: int) -> None:
    """Refuse to fit components to fewer cells.

    Raises
    ------
    UsageError
        If so.
    """
    if cells <= components:
        raise UsageError(
            f"{images(count)} {'has' if count == 1 else 'have'} {count_of(cells, 'cell')} of {key}, too few for "
            f"{count_of(components, 'component')}",
            "Give more images, or fit fewer --components, or take those of another run with --basis",
        )
