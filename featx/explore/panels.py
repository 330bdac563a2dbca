# Panels: the cells of a level in colours, drawn over the photo where they lie.
"""From a map and a frame to a picture."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from featx.explore.drawing import ACCENT, PAPER
from featx.images import cells
from featx.images.frame import Frame
from featx.runs.formats import Array
from featx.values import Level

# The most numbers of a map that are converted at a time.
BLOCK = 1 << 22


def size_of(frame: Frame, width: int) -> tuple[int, int]:
    """Return the size in pixels of a panel of the model's input, whose longer side is `width`."""
    longer = max(frame.input)
    across, down = (max(1, round(side * width / longer)) for side in frame.input)
    return across, down


def cellwise(function: Callable[[Array], Array], values: Array) -> Array:
    """Apply a function of features (…, C) to a map (C, H, W), a few rows at a time: (H, W, …)."""
    rows = max(1, BLOCK // max(1, values.shape[0] * values.shape[2]))
    parts = [np.moveaxis(values[:, top : top + rows], 0, -1) for top in range(0, values.shape[1], rows)]
    return np.concatenate([function(np.asarray(part, np.float32)) for part in parts])


def paint(base: Image.Image, colours: Array, frame: Frame, level: Level, share: float, *, smooth: bool) -> Image.Image:
    """Draw the colours of cells over a photo.

    A pixel gets the colour of the cell that it lies in; outside of all cells it keeps the photo's.

    Parameters
    ----------
    base : PIL.Image.Image
        The photo as the model saw it.
    colours : array
        (H, W, 3) uint8, one for each cell.
    share : float
        Opacity of the cell's colour over the photo, 0 to 1.
    smooth : bool
        Whether colours between the centres of cells are interpolated.
    """
    width, height = base.size
    offset, stride = cells.spacing_of(level)
    down = _cells(height, frame.input[1], offset[0], stride[0])
    across = _cells(width, frame.input[0], offset[1], stride[1])
    inside = np.outer(_within(down, colours.shape[0]), _within(across, colours.shape[1]))
    if smooth:
        painted = np.einsum("yh,hwc->ywc", _weights(down, colours.shape[0]), colours.astype(np.float64))
        painted = np.einsum("xw,ywc->yxc", _weights(across, colours.shape[1]), painted)
    else:
        painted = colours[_nearest(down, colours.shape[0])][:, _nearest(across, colours.shape[1])].astype(np.float64)
    photo = np.asarray(base, np.float64)
    mixed = np.where(inside[..., None], share * painted + (1 - share) * photo, photo)
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def mark(panel: Image.Image, frame: Frame, x: float, y: float) -> None:
    """Draw a cross on a panel, at a point of the photo (pixel centres at integers)."""
    across, down = frame.to_input(x, y)
    at_x = (across + 0.5) / frame.input[0] * panel.width
    at_y = (down + 0.5) / frame.input[1] * panel.height
    arm, pen = max(6, panel.width // 28), ImageDraw.Draw(panel)
    for colour, thick in ((PAPER, 5), (ACCENT, 2)):
        pen.line((at_x - arm, at_y, at_x + arm, at_y), colour, thick)
        pen.line((at_x, at_y - arm, at_x, at_y + arm), colour, thick)


def outline(panel: Image.Image, frame: Frame, level: Level, row: int, column: int) -> None:
    """Draw the edges of a cell on a panel."""
    offset, stride = cells.spacing_of(level)
    x1, x2 = ((offset[1] + (column + d) * stride[1] + 0.5) / frame.input[0] * panel.width for d in (-0.5, 0.5))
    y1, y2 = ((offset[0] + (row + d) * stride[0] + 0.5) / frame.input[1] * panel.height for d in (-0.5, 0.5))
    grow = max(0.0, 4 - min(x2 - x1, y2 - y1) / 2)  # cells of few pixels would be hidden by their edges
    pen, edges = ImageDraw.Draw(panel), (x1 - grow, y1 - grow, x2 + grow, y2 + grow)
    pen.rectangle(edges, outline=PAPER, width=4)
    pen.rectangle(edges, outline=ACCENT, width=2)


def _cells(pixels: int, length: int, offset: float, stride: float) -> Array:
    """Return, for each pixel along a panel's side, the fractional index of the cell at its centre."""
    centres: Array = (np.arange(pixels) + 0.5) / pixels * length - 0.5
    places: Array = (centres - offset) / stride
    return places


def _within(places: Array, count: int) -> Array:
    return (places >= -0.5) & (places < count - 0.5)


def _nearest(places: Array, count: int) -> Array:
    found: Array = np.clip(np.floor(places + 0.5).astype(int), 0, count - 1)
    return found


def _weights(places: Array, count: int) -> Array:
    """Return the weights of linear interpolation between cells, (pixels, cells); border cells are extended."""
    clipped = np.clip(places, 0, count - 1)
    weights: Array = np.maximum(0, 1 - np.abs(clipped[:, None] - np.arange(count)))
    return weights
