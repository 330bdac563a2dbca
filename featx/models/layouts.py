# Layouts: what a module gives, recognised as a map, the tokens of one, other tokens, or a vector.
"""How an output is laid out is measured, and never guessed.

`featx.models.order` says where the cells of the image have gone in it, and `featx.models.tracing` at which spacing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from featx.models.order import NO_CELL, Order, is_counted
from featx.models.tracing import Grid, Tracer

# Layouts in which an output is a map.
OF_MAPS = ("NCHW", "NHWC", "NLC", "NCL")


@dataclass(frozen=True, slots=True)
class Output:
    """What a module gave for one blank image.

    Attributes
    ----------
    shape : tuple of int
        Its own shape, (1, ...), if it is a tensor.
    fault : str
        Why it cannot be kept; empty if it can be.
    layout : str
        As `featx.models.captures.Capture` has it.
    sides : (int, int)
        Height and width of its map.
    prefix : int
        Tokens before those of its map.
    grid : Grid or None
        Where the cells of its map lie.
    in_head : bool
        Whether it was given after the network's last block.
    """

    shape: tuple[int, ...] = ()
    fault: str = ""
    layout: str = ""
    sides: tuple[int, int] = (0, 0)
    prefix: int = 0
    grid: Grid | None = None
    in_head: bool = False

    @property
    def channels(self) -> int:
        """C of what is kept."""
        if self.layout == "vector":
            return math.prod(self.shape)
        return self.shape[-1] if self.layout in ("NHWC", "NLC") else self.shape[1]

    @property
    def kept_shape(self) -> tuple[int, ...]:
        """Shape of what is kept for an image."""
        if self.layout == "tokens":
            return self.shape[1:]
        return (self.channels, *self.sides) if self.layout in OF_MAPS else (self.channels,)


def laid_out(output: Any, tracer: Tracer, order: Order, *, in_head: bool) -> Output:
    """Find out how an output is laid out."""
    if not isinstance(output, Tensor):
        return Output(fault=f"gives a {type(output).__name__}, not a tensor", in_head=in_head)
    numbers, grid = order.numbers_of(output), tracer.cells_of(output)
    found = _recognised(Output(shape=tuple(output.shape), in_head=in_head), numbers, grid)
    text = shape_text(found.shape)
    if not found.layout and found.shape[:1] != (1,):
        return replace(found, fault=f"gives {text} for one photo: windows or other pieces, not one array")
    return found if found.layout else replace(found, fault=f"gives {text}, in which featx finds no cells of a map")


def shape_text(shape: Sequence[int]) -> str:
    """Write a shape for people."""
    return " x ".join(map(str, shape))


def _recognised(output: Output, numbers: Tensor | None, grid: Grid | None) -> Output:
    shape = output.shape
    if shape[:1] != (1,):
        return output
    pooled = len(shape) == 4 and numbers is None and (1, 1) in (shape[1:3], shape[2:])
    if len(shape) == 2 or shape[:-1] == (1, 1) or pooled:  # a single token is one as well
        return replace(output, layout="vector")
    if len(shape) == 4 and numbers is not None:
        return _map(output, numbers, grid)
    return _tokens(output, numbers, grid) if len(shape) == 3 else output


def _map(output: Output, numbers: Tensor, grid: Grid | None) -> Output:
    """Recognise a map by its cells, which are counted row by row along two of its dimensions."""
    for layout, cells in (("NCHW", numbers[0, 0]), ("NHWC", numbers[0, :, :, 0])):
        here = _fitted(grid, *cells.shape)
        if here and is_counted(cells.flatten()):
            return replace(output, layout=layout, sides=(cells.shape[0], cells.shape[1]), grid=here)
    return output


def _tokens(output: Output, numbers: Tensor | None, grid: Grid | None) -> Output:
    """Recognise the tokens of a map, with those before them; others are kept as they are."""
    for layout, cells in (("NLC", numbers[0, :, 0]), ("NCL", numbers[0, 0])) if numbers is not None else ():
        prefix = int((cells != NO_CELL).int().argmax())
        own = cells[prefix:]
        if len(own) > 1 and is_counted(own) and (here := _of_length(grid, len(own))):
            sides = (here[0].length, here[1].length)
            return replace(output, layout=layout, sides=sides, prefix=prefix, grid=here)
    return replace(output, layout="tokens")


def _of_length(grid: Grid | None, count: int) -> Grid | None:
    """Bring a grid to so many cells, its neighbours having been merged in squares."""
    if grid is None:
        return None
    merged = math.isqrt(grid[0].length * grid[1].length // count)
    here = _fitted(grid, grid[0].length // max(merged, 1), grid[1].length // max(merged, 1))
    return here if here and here[0].length * here[1].length == count else None


def _fitted(grid: Grid | None, height: int, width: int) -> Grid | None:
    if grid is None:
        return None
    first, second = grid[0].merged(height), grid[1].merged(width)
    return None if first is None or second is None else (first, second)
