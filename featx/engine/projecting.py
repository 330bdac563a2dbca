# The projection: maps on their first principal components.
"""``--components``, on the device that computed the maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from msgspec.structs import replace
from torch import Tensor

from featx.engine.reducing import Photo, Values
from featx.runs.basis import Basis, Projection
from featx.values import Field, Level


@dataclass(frozen=True, slots=True)
class Components:
    """Project maps on components; a map with no more channels than these keeps its channels.

    Each image is projected by itself, so that its numbers do not depend on the others, bit for bit.

    Attributes
    ----------
    count : int
        Components of a map.
    keys : mapping of int to str
        The names of the maps, by their places among the fields.
    basis : Basis or None
        What they are projected on; None as long as only the shapes are wanted.
    """

    count: int
    keys: Mapping[int, str]
    basis: Basis | None = None

    def fields(self, fields: Sequence[Field]) -> list[Field]:
        """Return the fields with the channels that are left."""
        return [
            replace(field, shape=(min(field.shape[0] or 0, self.count), *field.shape[1:]))
            if place in self.keys
            else field
            for place, field in enumerate(fields)
        ]

    def level(self, level: Level) -> Level:
        """Return a level with the channels that are left."""
        return replace(level, channels=min(level.channels, self.count))

    def __call__(self, values: Sequence[Values], _: Sequence[Photo]) -> list[Values]:
        """Project the maps of a batch."""
        return [
            self.projected(value, self.keys[place]) if place in self.keys and isinstance(value, Tensor) else value
            for place, value in enumerate(values)
        ]

    def projected(self, values: Tensor, key: str) -> Tensor:
        """Project (B, C, H, W) maps of a level: (B, k, H, W)."""
        if values.shape[1] <= self.count:
            return values
        mean, components = self._on(values.device, key)
        # The difference is a tensor of its own: in the batch, the bits of an image could depend on its place.
        each = [components @ (image.float().reshape(len(mean), -1) - mean[:, None]) for image in values]
        return torch.stack(each).reshape(len(values), len(components), *values.shape[-2:])

    def unprojected(self, values: Tensor, key: str) -> Tensor:
        """Return maps to their channels: (B, C, H, W)."""
        if self.basis is None or self.basis.of(key, self.count) is None:
            return values
        mean, components = self._on(values.device, key)
        return torch.einsum("bkhw,kc->bchw", values, components) + mean[:, None, None]

    def _on(self, device: torch.device, key: str) -> tuple[Tensor, Tensor]:
        """Return the mean and the components of a level on a device."""
        found: Projection | None = self.basis.of(key, self.count) if self.basis else None
        if found is None:
            raise LookupError(f"there are no components of {key}")
        mean, components = (torch.from_numpy(each).to(device) for each in found)
        return mean, components
