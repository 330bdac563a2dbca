# Losses: what a grid, components and a type leave of a map, measured on a sample of a run's images.
"""How much is lost by each step that makes maps smaller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from featx.dtypes import DTYPES
from featx.engine.pooling import Grid
from featx.engine.projecting import Components
from featx.engine.reducing import Photo, Values
from featx.engine.scaling import scaled
from featx.images.cells import Array
from featx.values import Field, Level

# What is summed for each image and level: squares of the map and of the pooled map, and of the differences that the
# grid, the components and the type make, and the last two together.
SUMS = ("map", "pooled", "grid", "components", "dtype", "together")


@dataclass(frozen=True, slots=True)
class Squares:
    """Sum the squares of maps, and of what each step takes away from them: (6,) float64 for each map, as in `SUMS`.

    Attributes
    ----------
    levels : mapping of int to Level
        The levels of the maps, as the network has them, by their places; nothing else comes out.
    grid, components : Grid, Components or None
        Those of the run.
    dtype : str
        The type in which maps are stored.
    """

    levels: Mapping[int, Level]
    grid: Grid | None
    components: Components | None
    dtype: str

    def fields(self, _: Sequence[Field]) -> list[Field]:
        """Return an array of sums for each map."""
        return [Field(level.key, (len(SUMS),), "float64") for level in self.levels.values()]

    def level(self, level: Level) -> Level:
        """Return the level itself."""
        return level

    def __call__(self, values: Sequence[Values], photos: Sequence[Photo]) -> list[Values]:
        """Take the steps one after the other, and compare."""
        return [self._sums(values[place], level, photos) for place, level in self.levels.items()]

    def _sums(self, values: Any, level: Level, photos: Sequence[Photo]) -> Tensor:
        whole = values.float()
        pooled = self.grid.pooled(whole, level, photos) if self.grid else whole
        spread = interpolate(pooled, size=whole.shape[-2:], mode="nearest-exact")
        projected = self.components.projected(pooled, level.key) if self.components else pooled
        rounded = self._rounded(projected)
        back, last = (self._back(each, level.key) for each in (projected, rounded))
        differences = (spread - whole, back - pooled, rounded - projected, last - pooled)
        each = [value.double().square().sum((1, 2, 3)) for value in (whole, pooled, *differences)]
        return torch.stack(each, dim=1)

    def _rounded(self, values: Tensor) -> Tensor:
        if DTYPES[self.dtype].scaled:
            whole, scale = scaled(values)
            return whole.float() * scale[:, :, None, None]
        return values.to(getattr(torch, self.dtype)).float()

    def _back(self, values: Tensor, key: str) -> Tensor:
        return self.components.unprojected(values, key) if self.components else values


class Losses:
    """The relative errors of a sample's images, level by level."""

    def __init__(self) -> None:
        self._images = 0
        self._sums: dict[str, Array] = {}

    def add(self, sums: Mapping[str, Array]) -> None:
        """Add the sums of an image."""
        self._images += 1
        for key, values in sums.items():
            self._sums[key] = self._sums.get(key, np.zeros(len(SUMS))) + values

    def summary(self) -> dict[str, Any]:
        """Return the errors as they are written into a run's summary: Frobenius norms of differences and of maps."""
        return {"images": self._images, "levels": {key: _errors(values) for key, values in self._sums.items()}}


def _errors(sums: Array) -> dict[str, float]:
    whole, pooled, *differences = sums.tolist()
    against = (whole, pooled, pooled, pooled)
    return {
        name: float(f"{sqrt(part / norm) if norm else 0.0:.4g}")
        for name, part, norm in zip(SUMS[2:], differences, against, strict=True)
    }
