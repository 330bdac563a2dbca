# Features of boxes and at points: a map averaged by torchvision's roi_align, or sampled bilinearly.
"""Features in boxes and at points given in cells. Only `regions` and `regions_of_batch` need torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from featx.images.cells import SAME, Array

if TYPE_CHECKING:
    from torch import Tensor


def regions(values: Tensor, boxes: ArrayLike, size: tuple[int, int] = (1, 1)) -> Tensor:
    """Average a map in boxes; see `regions_of_batch`.

    Parameters
    ----------
    values : Tensor
        (C, H, W).
    boxes : array_like
        (B, 4).
    size : tuple of int
        Height and width of the result, in bins.

    Returns
    -------
    Tensor
        (B, C, h, w) float32.
    """
    return regions_of_batch(values[None], [np.asarray(boxes, np.float64).reshape(-1, 4)], size)


def regions_of_batch(values: Tensor, boxes: Sequence[Array], size: tuple[int, int] = (1, 1)) -> Tensor:
    """Average maps in boxes, by ``torchvision.ops.roi_align`` (aligned, as many samples as a box has cells).

    Beyond a map its border cells are repeated, so that no zeros are averaged. The numbers of a box do not depend on the
    other boxes.

    Parameters
    ----------
    values : Tensor
        (N, C, H, W), of any floating type, on any device; float16 is computed in float32.
    boxes : sequence of array
        (B, 4) for each map: edges in cells, cell `i` spanning i … i + 1; see `featx.images.cells.boxes_in_cells`.
    size : tuple of int
        Height and width of the result, in bins.

    Returns
    -------
    Tensor
        (B of all maps together, C, h, w) float32, on the same device; NaN for boxes that are NaN.
    """
    import torch
    from torch.nn.functional import pad
    from torchvision.ops import roi_align

    edges = np.concatenate([np.empty((0, 4)), *boxes])
    numbers = np.repeat(np.arange(len(boxes)), [len(each) for each in boxes])
    height, width = values.shape[-2:]
    # roi_align repeats a border cell once, and has zeros beyond; a network that does not pad its input needs more.
    outside = np.stack([-edges[:, 0], -edges[:, 1], edges[:, 2] - width, edges[:, 3] - height])
    margins = np.ceil(np.maximum(outside.max(0) - 0.5, 0))
    found = torch.full((len(edges), values.shape[1], *size), torch.nan, device=values.device)
    for margin in np.unique(margins[np.isfinite(margins)]).astype(int).tolist():
        chosen = np.flatnonzero(margins == margin)
        rows = np.column_stack([numbers[chosen], edges[chosen] + margin])
        maps = pad(values.float(), [margin] * 4, "replicate") if margin else values.float()
        inside = torch.from_numpy(rows).to(values.device, torch.float32)
        found[torch.from_numpy(chosen).to(values.device)] = roi_align(maps, inside, size, aligned=True)
    return found


def sample(values: Array, row: ArrayLike, column: ArrayLike) -> Array:
    """Sample a map bilinearly between its cells; beyond the map its border cells are repeated.

    Parameters
    ----------
    values : array
        (C, H, W); of a memory map, only the cells around the points are read.
    row, column : array_like
        (P,): cells, as `featx.images.cells.to_cell` gives them.

    Returns
    -------
    array
        (P, C) float32: at a cell's centre exactly its own numbers; NaN where row or column is NaN.
    """
    top, bottom, down = _around(row, values.shape[1])
    left, right, across = _around(column, values.shape[2])
    upper = _between(_cells(values, top, left), _cells(values, top, right), across)
    lower = _between(_cells(values, bottom, left), _cells(values, bottom, right), across)
    found = _between(upper, lower, down)
    found[np.isnan(down) | np.isnan(across)] = np.nan
    return found.astype(np.float32)


def _around(position: ArrayLike, length: int) -> tuple[Array, Array, Array]:
    """Return the cells before and after each position, and how far it lies from the first towards the second."""
    place = np.clip(np.asarray(position, np.float64), 0, length - 1)
    whole = np.rint(place)
    place = np.where(abs(place - whole) < SAME, whole, place)
    before = np.floor(np.nan_to_num(place)).astype(int)
    return before, np.minimum(before + 1, length - 1), place - before


def _cells(values: Array, row: Array, column: Array) -> Array:
    return values[:, row, column].T.astype(np.float64)


def _between(first: Array, second: Array, share: Array) -> Array:
    """Interpolate; where the share is 0 keep the first unchanged, including the sign of its zeros."""
    share = share[:, None]
    found: Array = np.where(share == 0, first, first + (second - first) * share)
    return found
