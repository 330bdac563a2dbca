# Scaling: maps as whole numbers, with a scale for each channel of an image.
"""``--dtype int8``, on the device that computed the maps."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from msgspec.structs import replace
from torch import Tensor

from featx.dtypes import SCALE
from featx.engine.reducing import Photo, Reduction, Values
from featx.values import Field, Level

# The largest whole number: as many below zero as above it.
LARGEST = 127


@dataclass(frozen=True, slots=True)
class Scaled(Reduction):
    """Store maps as int8: each value divided by its channel's scale, the largest magnitude there by `LARGEST`.

    The (C,) float32 scales of a map follow it as an array of their own, so that a map is the product of both. A channel
    of zeros has scale 0; one with NaN or infinity has that as its scale.

    Attributes
    ----------
    places : collection of int
        Those of the maps, among the fields.
    """

    places: Collection[int]

    def fields(self, fields: Sequence[Field]) -> list[Field]:
        """Return each map's field, and that of its scales."""
        return list(chain.from_iterable(self._fields(place, field) for place, field in enumerate(fields)))

    def _fields(self, place: int, field: Field) -> list[Field]:
        if place not in self.places:
            return [field]
        return [replace(field, dtype="int8"), Field(f"{field.key}{SCALE}", field.shape[:1], "float32")]

    def level(self, level: Level) -> Level:
        """Return the level itself."""
        return level

    def __call__(self, values: Sequence[Values], _: Sequence[Photo]) -> list[Values]:
        """Scale the maps of a batch."""
        made: list[Values] = []
        for place, value in enumerate(values):
            made += scaled(value) if place in self.places else [value]
        return made


def scaled(values: Any) -> tuple[Tensor, Tensor]:
    """Return (B, C, H, W) int8 and the (B, C) float32 scales of maps."""
    maps = values.float()
    scale = scale_of(maps.abs().amax((2, 3)))
    return quotients(maps, scale[:, :, None, None]), scale


def scale_of(largest: Tensor) -> Tensor:
    """Return the scales of channels whose largest magnitudes are these."""
    return largest / LARGEST


def quotients(maps: Tensor, scale: Tensor) -> Tensor:
    """Return maps as int8: in units of their scales."""
    whole = torch.clamp(torch.round(maps / torch.where(scale > 0, scale, 1.0)), -LARGEST, LARGEST)
    return torch.nan_to_num(whole).to(torch.int8)
