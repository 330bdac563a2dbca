# Where the cells of a map lie in the input: grids of cells, followed through a network that runs on shapes alone.
"""Strides and offsets, read off a network while it runs on the meta device.

Every tensor that descends from the input carries the grid of its cells: their spacing, and where in the input the
centre of cell 0 lies. Convolutions, pools, pads, strided slices and resampling move it by the usual arithmetic (Araujo,
Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019); everything else passes it
on. Where branches are added up whose centres differ, the grid keeps how far they lie apart, and their mean.

What has no place of its own is ignored: global pooling, and attention (a token stays where its query is).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from math import isclose
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Axis:
    """The cells along one axis of a map.

    Attributes
    ----------
    length : int
        How many there are.
    stride : float
        Their spacing, in input pixels.
    lowest, highest : float
        Input pixels at the centre of cell 0 along those paths through the network that lie furthest apart.
    offset : float
        The mean of all paths, in which those that are added up count by their strength.
    strength : float
        How many branches of equal strength were added up since a convolution or a norm evened them out.
    """

    length: int
    stride: float = 1.0
    lowest: float = 0.0
    highest: float = 0.0
    offset: float = 0.0
    strength: float = 1.0

    @property
    def spread(self) -> float:
        """How far paths lie apart, in cells."""
        return (self.highest - self.lowest) / self.stride

    def windowed(self, length: int, kernel: int, step: int, padding: int, dilation: int = 1) -> Axis:
        """Slide a window of `kernel` cells over the axis."""
        return self._moved(length, dilation * (kernel - 1) / 2 - padding, step)

    def cut(self, length: int, start: int, step: int = 1) -> Axis:
        """Take every `step`-th cell from `start` on; a negative `start` is padding."""
        return self._moved(length, start, step)

    def merged(self, length: int) -> Axis | None:
        """Group neighbouring cells into `length` of them, as patch merging does; None where they do not divide."""
        if length == self.length:
            return self
        if length < 1 or self.length % length:
            return None
        return self.windowed(length, self.length // length, self.length // length, 0)

    def scaled(self, length: int) -> Axis:
        """Resample to `length` cells; the outer edges stay together."""
        step = self.length / length
        return self._moved(length, (step - 1) / 2, step)

    def joined(self, others: Iterable[Axis]) -> Axis:
        """Add up branches of the same cells."""
        branches = [self, *others]
        strength = sum(branch.strength for branch in branches)
        return replace(
            self,
            lowest=min(branch.lowest for branch in branches),
            highest=max(branch.highest for branch in branches),
            offset=sum(branch.offset * branch.strength for branch in branches) / strength,
            strength=strength,
        )

    def _moved(self, length: int, cells: float, step: float) -> Axis:
        """Move the first cell by a number of cells, and take every `step`-th from there."""
        shift = cells * self.stride
        return Axis(
            length,
            self.stride * step,
            self.lowest + shift,
            self.highest + shift,
            self.offset + shift,
            self.strength,
        )


Grid = tuple[Axis, Axis]


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode in which tensors carry their grids; only one image at a time goes through."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._grids: Any = WeakIdKeyDictionary()

    def begin(self, image: Tensor) -> None:
        """Make a (1, 3, H, W) tensor the input."""
        self._grids[image] = (Axis(image.shape[2]), Axis(image.shape[3]))

    def grid_of(self, level: Tensor) -> Grid | None:
        """Return the grid of a (1, C, H, W) map; None where its cells have no known place."""
        grid = self._grids.get(level)
        return None if grid is None else _fitted(grid, *level.shape[2:])

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        descended = [value for value in _tensors((args, kwargs)) if value in self._grids]
        grids = [self._grids[value] for value in sorted(descended, key=Tensor.numel, reverse=True)]
        if grids:
            follow = _RULES.get(function.overloadpacket, _pass_on)
            for output in _tensors(result):
                grid = follow(grids, output, args)
                if grid is not None:
                    self._grids[output] = grid
                elif output in self._grids:  # changed in place
                    del self._grids[output]
        return result


def _pass_on(grids: list[Grid], output: Tensor, args: tuple[Any, ...]) -> Grid | None:
    """Keep the grid of the largest, joined with others of the same cells (the branches of a sum)."""
    del output, args
    first, second = zip(*(grid for grid in grids if _alike(grid, grids[0])), strict=True)
    return first[0].joined(first[1:]), second[0].joined(second[1:])


def _even_out(grids: list[Grid], output: Tensor, args: tuple[Any, ...]) -> Grid | None:
    """Keep the grid, its branches mixed into one: what comes out of a norm or a matrix has the same size as ever."""
    del output, args
    return _of_strength(grids[0], 1.0)


def _product(grids: list[Grid], output: Tensor, args: tuple[Any, ...]) -> Grid | None:
    """Keep the grid whose cells are the rows of the product, or else its columns: an attention's queries."""
    del args
    for dim in (-2, -1):
        for grid in grids:
            if grid[0].length * grid[1].length == output.shape[dim]:
                return _of_strength(grid, 1.0)
    return _of_strength(grids[0], 1.0)


def _convolution(grids: list[Grid], output: Tensor, args: tuple[Any, ...]) -> Grid | None:
    image, weight, _, stride, padding, dilation, transposed = args[:7]
    grid = _of_strength(grids[0], 1.0)
    if image.ndim != 4 or transposed:
        return grid if image.ndim == 3 else None
    return _slide(grid, output, image, weight.shape[2:], stride, padding, dilation)


def _pool(grids: list[Grid], output: Tensor, args: tuple[Any, ...]) -> Grid | None:
    image, kernel, *rest = args
    stride = rest[0] if rest and rest[0] else kernel
    padding = rest[1] if len(rest) > 1 else 0
    dilation = rest[2] if len(rest) > 2 and not isinstance(rest[2], bool) else 1
    return _slide(grids[0], output, image, kernel, stride, padding, dilation)


def _slide(grid: Grid, output: Tensor, image: Tensor, *window: Any) -> Grid | None:
    """Apply a sliding window on the last two axes of `image`."""
    here = _fitted(grid, *image.shape[-2:]) if image.shape[0] == 1 or _is_map(grid, image) else None
    if here is None:
        # Windows of an attention, folded into the batch: a cell stays where it is as long as its neighbours do.
        return grid if image.shape[-2:] == output.shape[-2:] else None
    kernel, step, padding, dilation = (_pair(value) for value in window)
    first, second = (
        axis.windowed(output.shape[dim - 2], kernel[dim], step[dim], padding[dim], dilation[dim])
        for dim, axis in enumerate(here)
    )
    return first, second


def _adaptive_pool(grids: list[Grid], output: Tensor, args: tuple[Any, ...]) -> Grid | None:
    del args
    height, width = output.shape[-2:]
    return None if (height, width) == (1, 1) else _fitted(grids[0], height, width)


def _pad(grids: list[Grid], output: Tensor, args: tuple[Any, ...]) -> Grid | None:
    image, amounts = args[0], list(args[1])
    grid = grids[0]
    for axis in range(2):
        dim = _dim_of(grids[0], image, axis)
        place = 2 * (image.ndim - 1 - dim) if dim is not None else len(amounts)
        if dim is not None and place < len(amounts):
            grid = _replaced(grid, axis, grids[0][axis].cut(output.shape[dim], -amounts[place]))
    return grid


def _slice(grids: list[Grid], output: Tensor, args: tuple[Any, ...]) -> Grid | None:
    given = (*args, *(0, None, None, 1)[len(args) - 1 :])
    image, dim, start, step = given[0], given[1], given[2], given[4]
    for axis in range(2):
        if _dim_of(grids[0], image, axis) == dim % image.ndim:
            length = image.shape[dim]
            begin = 0 if start is None else max(start + length, 0) if start < 0 else start
            return _replaced(grids[0], axis, grids[0][axis].cut(output.shape[dim], begin, step))
    return grids[0]


def _resample(grids: list[Grid], output: Tensor, args: tuple[Any, ...]) -> Grid | None:
    """Follow a map that is resized; its outer edges stay where they are."""
    grid = _fitted(grids[0], *args[0].shape[-2:])
    return None if grid is None else (grid[0].scaled(output.shape[-2]), grid[1].scaled(output.shape[-1]))


Rule = Callable[[list[Grid], Tensor, tuple[Any, ...]], Grid | None]

_RULES: dict[Any, Rule] = {
    aten.bmm: _product,
    aten.mm: _product,
    aten.addmm: _even_out,
    aten.native_batch_norm: _even_out,
    aten.native_layer_norm: _even_out,
    aten.native_group_norm: _even_out,
    aten.convolution: _convolution,
    aten.max_pool2d_with_indices: _pool,
    aten.avg_pool2d: _pool,
    aten._adaptive_avg_pool2d: _adaptive_pool,  # noqa: SLF001 - its name in torch
    aten.adaptive_max_pool2d: _adaptive_pool,
    aten.constant_pad_nd: _pad,
    aten.reflection_pad2d: _pad,
    aten.replication_pad2d: _pad,
    aten.slice: _slice,
    **{
        getattr(aten, name): _resample
        for name in (
            *("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa"),
            *("_upsample_bicubic2d_aa", "_upsample_nearest_exact2d"),
        )
    },
}


def _fitted(grid: Grid, height: int, width: int) -> Grid | None:
    """Bring a grid to the size that a tensor has by now, its cells having been merged by reshaping."""
    first, second = grid[0].merged(height), grid[1].merged(width)
    return None if first is None or second is None else (first, second)


def _alike(grid: Grid, other: Grid) -> bool:
    """Whether two grids have the same cells, which may be centred elsewhere."""
    return all(
        one.length == another.length and isclose(one.stride, another.stride)
        for one, another in zip(grid, other, strict=True)
    )


def _of_strength(grid: Grid, strength: float) -> Grid:
    return replace(grid[0], strength=strength), replace(grid[1], strength=strength)


def _replaced(grid: Grid, axis: int, value: Axis) -> Grid:
    return (value, grid[1]) if axis == 0 else (grid[0], value)


def _is_map(grid: Grid, image: Tensor) -> bool:
    return tuple(image.shape[-2:]) == (grid[0].length, grid[1].length)


def _dim_of(grid: Grid, image: Tensor, axis: int) -> int | None:
    """Dimension of `image` along which an axis lies: the last two of (B, C, H, W), the middle ones of (B, H, W, C)."""
    if image.ndim < 3:
        return None
    if _is_map(grid, image):
        return image.ndim - 2 + axis
    if image.ndim == 4 and tuple(image.shape[1:3]) == (grid[0].length, grid[1].length):
        return 1 + axis
    return None


def _pair(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return values[0], values[-1]


def _tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
