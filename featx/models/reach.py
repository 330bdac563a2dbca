# Reach: how far beyond a tile the network looks, found by running a picture of which a part is not a number.
"""Receptive fields, measured.

NaN spreads to every value that is computed from it, whatever the weights: where half of a picture is NaN, the cells
that are not depend on nothing in that half.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from featx.models.levels import to_nchw
from featx.process import random_state

if TYPE_CHECKING:
    from featx.models.pyramid import Blueprint

# The longest picture that is tried, in pixels; a network that sees further counts as one that sees everything.
LONGEST = 4096

# The shortest one, in multiples of what the network takes.
SHORTEST = 8


def reach_of(blueprint: Blueprint) -> int | None:
    """Measure how many pixels of the input, beyond a tile, the maps of a tile depend on.

    Tiles begin at multiples that the network takes. A global pooling, or attention to all of a picture, has every cell
    depend on every pixel.

    Returns
    -------
    int or None
        None if it is further than can be measured, or all of the picture.
    """
    feed = blueprint.description.input
    multiple = feed.multiple or 1
    short, longest = max(multiple, feed.least or 1), max(LONGEST, 2 * SHORTEST * multiple)
    with random_state():
        module, _ = blueprint.library.build(blueprint.description, replace(blueprint.request, weights="random", seed=0))
    length, found = SHORTEST * multiple, None
    while found is None and length <= longest:
        found = _reach(module.float(), blueprint.description.layout, short, length)
        length *= 2
    return found


def _reach(module: nn.Module, layout: str, short: int, length: int) -> int | None:
    """Measure along both axes, on pictures of that length; None if no cell is left that does not depend on all."""
    farthest, middle = 0, length // 2
    for axis in (2, 3):
        size = [1, 3, short, short]
        size[axis] = length
        for is_first in (True, False):
            picture = torch.zeros(size)
            picture.narrow(axis, 0 if is_first else middle, middle).fill_(torch.nan)
            with torch.inference_mode():
                maps = to_nchw(layout, module(picture.to(memory_format=torch.channels_last)))
            for level in maps:
                distance = _distance(level, axis, length, is_first=is_first)
                if distance is None:
                    return None
                farthest = max(farthest, distance)
    return farthest


def _distance(level: Tensor, axis: int, length: int, *, is_first: bool) -> int | None:
    """Return how far NaN has spread beyond the middle, in pixels; None if to the end, or if there is no map."""
    if level.ndim != 4:
        return None
    cells = level.shape[axis]
    good = level.isnan().flatten(0, 1).any(0).any(axis % 2 ^ 1).logical_not().nonzero().flatten()
    if not len(good):
        return None
    middle = length // 2
    if is_first:
        return max(0, int(good[0]) * length // cells - middle)
    return max(0, middle - (int(good[-1]) + 1) * length // cells)
