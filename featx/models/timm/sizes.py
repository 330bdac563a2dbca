# Input sizes: which ones a network takes, found by trying, and the nearest to one that it does not take.
"""Sizes of the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from featx.errors import ModelError, first_line
from featx.models.timm.building import SizeRefusedError, runs, ways_to_build
from featx.models.timm.input import own_input
from featx.models.timm.reference import Reference
from featx.requests import ModelRequest

# What the sides of an input may have to be multiples of: patches, windows, halos, and their products.
SIDES = (1, 2, 4, 7, 8, 14, 16, 28, 32, 48, 56, 64, 96, 112, 128, 192, 224, 256)


def sizes_taken(reference: Reference) -> dict[str, Any] | None:
    """Find out by trying which input sizes a network takes.

    Returns
    -------
    dict or None
        ``multiple``: sides have to be multiples of it, and long enough for the network's depth; ``square``: both have
        to be the same; ``rebuilt``: the network is rebuilt for the size. None where it takes no other size than its
        own.
    """
    for square in (False, True):
        for multiple in SIDES:
            height = _odd_multiple(multiple, 256)
            size = (height, height if square else _odd_multiple(multiple, height + 64))
            for arguments in ways_to_build(ModelRequest(reference.name), (3, *size)):
                if runs(reference, arguments, size):
                    return {"multiple": multiple, "square": square, "rebuilt": "img_size" in arguments}
    return None


def nearest_size(reference: Reference, size: Sequence[int], taken: dict[str, Any]) -> tuple[int, int] | None:
    """Return the nearest (height, width) that a network takes, or a multiple of it where that is too small.

    Parameters
    ----------
    reference : Reference
        The network.
    size : (int, int)
        What was asked for.
    taken : dict
        What `sizes_taken` found.
    """
    multiple = taken["multiple"]
    height, width = (max(1, int(side / multiple + 0.5)) * multiple for side in size)
    if taken["square"]:
        height = width = max(height, width)
    for factor in (1, 2, 4, 8, 16):
        near = (height * factor, width * factor)
        ways = ways_to_build(ModelRequest(reference.name), (3, *near))
        if any(runs(reference, arguments, near) for arguments in ways):
            return near
    return None


def size_error(
    reference: Reference, request: ModelRequest, size: Sequence[int], refused: SizeRefusedError
) -> ModelError:
    """Return the error of a size that was refused: it names the nearest one that is taken."""
    refusal = f"{reference.name} cannot take an input of {size[1]}x{size[2]} pixels"
    if request.image_size is None:
        return ModelError(
            f"{refusal}, its own size: {first_line(refused.__cause__ or refused)}", "Please report this model"
        )
    own = own_input(reference)
    taken = sizes_taken(reference)
    if taken is None:
        return ModelError(refusal, f"Its only size is {own.height}x{own.width}")
    near = nearest_size(reference, request.image_size, taken)
    if near is None:
        return ModelError(refusal, f"Its own size is {own.height}x{own.width}")
    nearest = f"The nearest size it accepts is {near[0]}x{near[1]}"
    return ModelError(refusal, f"{nearest}; its own is {own.height}x{own.width}")


def _odd_multiple(multiple: int, at_least: int) -> int:
    """Return the first odd multiple of `multiple` from `at_least` on; being odd, it is not one of twice `multiple`."""
    count = -(-at_least // multiple)
    return multiple * (count + 1 - count % 2)
