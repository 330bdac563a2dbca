# Native sizes: how timm's networks take photos of any size, found by running shapes of several sizes through them.
"""Networks that take every photo at its own size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import nn

from featx.errors import ModelError
from featx.models.timm.building import create, looks_at_values, real
from featx.models.timm.reference import Reference

# What a network is built with to take any size: as it is; with position embeddings that are resampled as it runs
# (ViTs); or with masks of windows that are made as it runs (Swins).
WAYS: tuple[dict[str, Any], ...] = ({}, {"dynamic_img_size": True}, {"strict_img_size": False})

# Sides of attention windows to try, in cells of the coarsest level, where a network does not say (maxvit, halonet).
WINDOWS = (1, 7, 8, 12)

# Heights and widths to try, in multiples beyond the least.
BEYOND = ((0, 1), (1, 2), (7, 4))

# The longest of the shortest sides to try, in multiples; some networks need more than one (inception).
SHORTEST = 3


@dataclass(frozen=True, slots=True)
class Native:
    """How a network takes photos at their own size.

    Attributes
    ----------
    multiple : int
        What the sides of the input are multiples of: the strides of all levels, and of windows where it has them.
    least : int or None
        The shortest side; None where one multiple is enough.
    arguments : dict
        What `timm.create_model` is given for it.
    """

    multiple: int
    least: int | None
    arguments: dict[str, Any]


def native(reference: Reference, more: dict[str, Any], own_size: Sequence[int]) -> Native | None:
    """Find out how a network takes photos of any size; None if it cannot.

    Parameters
    ----------
    reference : Reference
        The network.
    more : dict
        What `timm.create_model` is given in any case.
    own_size : (int, int)
        Height and width of its own input.
    """
    for way in WAYS:
        arguments = {**more, **way}
        skeleton = _built(reference, arguments)
        if skeleton is None:
            continue
        cells = math.lcm(*_strides(skeleton), *_windows(skeleton, own_size))
        shapes = _Shapes(reference, arguments, skeleton)
        for window, least in product(WINDOWS, range(1, SHORTEST + 1)):
            multiple = cells * window
            if _takes_any(shapes, multiple, least):
                return Native(multiple, least * multiple if least > 1 else None, way)
    return None


def require_native(reference: Reference, more: dict[str, Any], own_size: Sequence[int]) -> Native:
    """Return how a network takes any size.

    Raises
    ------
    ModelError
        If it cannot.
    """
    found = native(reference, more, own_size)
    if found is None:
        raise ModelError(
            f"{reference.name} has to be built for one size of input, so it cannot take photos at their own size",
            "Use --fit pad, which keeps the whole photo and its aspect ratio, with a larger --image-size if need be",
        )
    return found


def _built(reference: Reference, arguments: dict[str, Any]) -> nn.Module | None:
    """Build on the meta device, if it can be built so; networks that cannot raise all kinds of errors."""
    try:
        return create(reference, "meta", arguments)
    except Exception:  # noqa: BLE001
        return None


class _Shapes:
    """The sizes of a network's maps by the size of its input."""

    def __init__(self, reference: Reference, arguments: dict[str, Any], skeleton: nn.Module) -> None:
        self._reference, self._arguments, self._network = reference, arguments, skeleton

    def __call__(self, height: int, width: int) -> list[tuple[int, ...]] | None:
        """Return the shapes of the maps; None where the network does not take the size."""
        try:
            return self._run(height, width)
        except Exception as error:  # noqa: BLE001 - networks raise all kinds of errors
            if not looks_at_values(error):
                return None
        try:
            self._network = real(self._reference, self._arguments)
            return self._run(height, width)
        except Exception:  # noqa: BLE001
            return None

    def _run(self, height: int, width: int) -> list[tuple[int, ...]]:
        device = next(self._network.parameters()).device
        with torch.no_grad():
            return [tuple(values.shape) for values in self._network(torch.zeros(1, 3, height, width, device=device))]


def _takes_any(shapes: _Shapes, multiple: int, least: int) -> bool:
    """Whether a network takes sides of any length from `least` on, and its maps grow with them (crossvit's do not)."""
    first = shapes(least * multiple, least * multiple)
    last = first
    for tall, wide in BEYOND:
        if last is not None:
            last = shapes((least + tall) * multiple, (least + wide) * multiple)
    return last is not None and last != first


def _strides(skeleton: nn.Module) -> list[int]:
    information: Any = skeleton.feature_info
    return [math.ceil(entry["reduction"]) for entry in information.info]


def _windows(skeleton: nn.Module, own_size: Sequence[int]) -> list[int]:
    """Return the sides of attention windows, in pixels of the input, of networks that make their masks as they run."""
    sides = []
    for module in skeleton.modules():
        window = getattr(module, "window_size", None)
        cells = getattr(module, "input_resolution", None) or getattr(module, "feat_size", None)
        if isinstance(window, tuple) and isinstance(cells, tuple) and hasattr(module, "dynamic_mask"):
            sides += [
                math.ceil(length / count) * side for length, count, side in zip(own_size, cells, window, strict=True)
            ]
    return sides
