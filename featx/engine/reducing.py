# Reductions: steps applied to a network's arrays before they are written; none depends on a model library.
"""The steps between the network and the writer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from msgspec.structs import replace
from torch import Tensor

from featx.engine.boxes import FIELDS, Boxes, arrays_of
from featx.images.cells import Array, boxes_in_cells, cut
from featx.images.frame import Frame
from featx.images.regions import regions_of_batch
from featx.values import Field, Level


class Photo(NamedTuple):
    """A photo of a batch: its key, and where it lies in the model's input."""

    key: str
    frame: Frame


# The values of a batch: (B, ...), or, where they differ from photo to photo, one of its own for each.
Values = Tensor | Sequence[Tensor] | Sequence[Array]


class Reduction(Protocol):
    """A step from a batch's arrays to those that are written, or to the next step."""

    @property
    def is_ready(self) -> bool:
        """Whether it can be taken; if not, only its fields and levels are known."""
        return True

    def fields(self, fields: Sequence[Field], /) -> list[Field]:
        """Return the output fields for some input fields."""

    def level(self, level: Level, /) -> Level:
        """Return a level as its map comes out."""

    def __call__(self, values: Sequence[Values], photos: Sequence[Photo], /) -> list[Values]:
        """Reduce a batch: values for each field, on the device that computed it; blanks may follow the photos."""


@dataclass(frozen=True, slots=True)
class InBoxes(Reduction):
    """Add the features in each photo's boxes, level by level; the maps themselves may be dropped.

    Attributes
    ----------
    boxes : Boxes
        By photo.
    levels : mapping of int to Level
        Those whose maps are averaged, by their place among the fields.
    maps : bool
        Whether the maps are kept.
    dtype : str
        The type in which the features are stored.
    """

    boxes: Boxes
    levels: Mapping[int, Level]
    maps: bool
    dtype: str

    def fields(self, fields: Sequence[Field]) -> list[Field]:
        """Return what is kept, the boxes, and a (B, C, h, w) array of features for each level."""
        features = [
            Field(f"{level.key}_boxes", (None, level.channels, *self.boxes.size), self.dtype)
            for level in self.levels.values()
        ]
        return [*self._kept(fields), *FIELDS, *features]

    def __call__(self, values: Sequence[Values], photos: Sequence[Photo]) -> list[Values]:
        """Compute the features where the maps are; those of a photo do not depend on the others."""
        marks = [self.boxes.of(photo.key, photo.frame) for photo in photos]
        given = [arrays_of(each, photo.frame) for each, photo in zip(marks, photos, strict=True)]
        edges = [boxes for boxes, *_ in given]
        features = [self._features(level, values[place], photos, edges) for place, level in self.levels.items()]
        beside = [[arrays[place] for arrays in given] for place in range(len(FIELDS))]
        return [*self._kept(values), *beside, *features]

    def level(self, level: Level) -> Level:
        """Return the level itself."""
        return level

    def _kept(self, values: Sequence[Any]) -> list[Any]:
        return [value for place, value in enumerate(values) if self.maps or place not in self.levels]

    def _features(
        self, level: Level, values: Any, photos: Sequence[Photo], edges: Sequence[Array]
    ) -> tuple[Tensor, ...]:
        """Return those of each photo."""
        inside = [
            boxes_in_cells(photo.frame, level, cut(photo.frame, boxes))
            for photo, boxes in zip(photos, edges, strict=True)
        ]
        found = regions_of_batch(values, inside, self.boxes.size).to(getattr(torch, self.dtype))
        return torch.split(found, [len(boxes) for boxes in edges])


@dataclass(frozen=True, slots=True)
class StoredType(Reduction):
    """Cast arrays to the stored type; vectors keep full precision, and what has a type already keeps that.

    Attributes
    ----------
    dtype : str
        ``float32``, ``float16`` or ``bfloat16``.
    """

    dtype: str

    def fields(self, fields: Sequence[Field]) -> list[Field]:
        """Return the same arrays, with their types."""
        return [
            field if field.dtype else replace(field, dtype="float32" if field.is_vector else self.dtype)
            for field in fields
        ]

    def level(self, level: Level) -> Level:
        """Return the level itself."""
        return level

    def __call__(self, values: Sequence[Values], _: Sequence[Photo]) -> list[Values]:
        """Cast where that halves the copy; on a CPU, the copy into the output's layout casts."""
        return [self._cast(value) if isinstance(value, Tensor) and value.is_cuda else value for value in values]

    def _cast(self, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        return value.to(torch.float32 if value.ndim == 2 else getattr(torch, self.dtype))  # (B, D) is vectors
