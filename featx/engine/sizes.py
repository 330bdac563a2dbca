# Sizes: those of a run's photos, and of the inputs that are made of them, worked out from a sample.
"""What is known about photos before any is decoded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featx.images import headers
from featx.images.native import filled_up, reduced
from featx.images.tiles import Tiling

if TYPE_CHECKING:
    from featx.models.pyramid import Blueprint


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of photos, and of the inputs that are made of them.

    Attributes
    ----------
    photo, largest_photo : (int, int) or None
        Width and height of a typical photo, and of the largest one where each has an input size of its own.
    largest : (int, int)
        Height and width of the largest input.
    passed : (int, int)
        Height and width of the largest that goes through the network at once: a tile, where inputs are cut.
    inputs : tuple of (int, int)
        Height and width of all inputs.
    """

    photo: tuple[int, int] | None
    largest_photo: tuple[int, int] | None
    largest: tuple[int, int]
    passed: tuple[int, int]
    inputs: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, blueprint: Blueprint, photos: Sequence[tuple[int, int]], tiling: Tiling | None = None) -> Sizes:
        """Work out the inputs that a pyramid makes of photos of these (width, height), and how they are cut."""
        feed, traced = blueprint.description.input, blueprint.description.traced
        if feed.height is not None or feed.multiple is None or not photos:
            return cls(headers.typical(photos), None, traced, traced, (traced,))
        ordered = sorted(photos, key=math.prod)
        inputs = [filled_up(reduced(size, feed.max_side), feed.multiple, feed.least)[::-1] for size in ordered]
        windows = [tiling.window(size) for size in inputs] if tiling else inputs
        passed = max(windows, key=math.prod)
        return cls(ordered[len(ordered) // 2], ordered[-1], inputs[-1], passed, tuple(inputs))
