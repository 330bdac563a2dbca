# Where the cells of a map lie in the input: grids of cells, followed through a network that runs on shapes alone.
"""Strides and offsets, read off a network while it runs on the meta device.

Every tensor that descends from the input carries the grid of its cells: their spacing, and the box of input pixels that
cell 0 sees. Convolutions, pools, pads and strided slices change it by the usual arithmetic (Araujo, Norris and Sim,
"Computing Receptive Fields of Convolutional Neural Networks", Distill 2019); everything else passes it on. The
centre of the box is the level's offset.

What has no place of its own is ignored: global pooling, attention (a token stays where its query is), and maps that
are scaled up from coarser ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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
    first, last : float
        The first and last input pixel that cell 0 sees; below 0 where it sees padding.
    """

    length: int
    stride: float = 1.0
    first: float = 0.0
    last: float = 0.0

    @property
    def offset(self) -> float:
        """Input pixel at the centre of cell 0."""
        return (self.first + self.last) / 2

    def windowed(self, length: int, kernel: int, step: int, padding: int, dilation: int = 1) -> Axis:
        """Slide a window of `kernel` cells over the axis."""
        start = -padding
        stop = start + dilation * (kernel - 1)
        return Axis(length, self.stride * step, self.first + start * self.stride, self.last + stop * self.stride)

    def cut(self, length: int, start: int, step: int = 1) -> Axis:
        """Take every `step`-th cell from `start` on; a negative `start` is padding."""
        return Axis(length, self.stride * step, self.first + start * self.stride, self.last + start * self.stride)

    def merged(self, length: int) -> Axis | None:
        """Group neighbouring cells into `length` of them, as patch merging does; None where they do not divide."""
        if length == self.length:
            return self
        if length < 1 or self.length % length:
            return None
        return self.windowed(length, self.length // length, self.length // length, 0)

    def scaled(self, length: int) -> Axis:
        """Resample to `length` cells; the outer edges stay together."""
        stride = self.stride * self.length / length
        shift = (stride - self.stride) / 2
        return Axis(length, stride, self.first + shift, self.last + shift)


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
    """Keep the grid of the largest, widened by others of the same cells (the branches of a sum or a concatenation)."""
    del output, args
    result = grids[0]
    for other in grids[1:]:
        if _cells(other) == _cells(result):
            result = (_widened(result[0], other[0]), _widened(result[1], other[1]))
    return result


def _product(grids: list[Grid], output: Tensor, args: tuple[Any, ...]) -> Grid | None:
    """Keep the grid whose cells are the rows of the product, or else its columns: an attention's queries."""
    del args
    for dim in (-2, -1):
        for grid in grids:
            if grid[0].length * grid[1].length == output.shape[dim]:
                return grid
    return grids[0]


def _convolution(grids: list[Grid], output: Tensor, args: tuple[Any, ...]) -> Grid | None:
    image, weight, _, stride, padding, dilation, transposed = args[:7]
    if image.ndim != 4 or transposed:
        return _pass_on(grids, output, args) if image.ndim == 3 else None
    return _slide(grids[0], output, image, weight.shape[2:], stride, padding, dilation)


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
    """Follow a resized image; maps scaled up from coarser ones have no place of their own."""
    height, width = grids[0]
    if (height.stride, width.stride, height.first) != (1, 1, 0) or args[0].shape[1] != 3:
        return None
    return height.scaled(output.shape[-2]), width.scaled(output.shape[-1])


Rule = Callable[[list[Grid], Tensor, tuple[Any, ...]], Grid | None]

_RULES: dict[Any, Rule] = {
    aten.bmm: _product,
    aten.mm: _product,
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


def _cells(grid: Grid) -> tuple[tuple[int, float], ...]:
    return tuple((axis.length, axis.stride) for axis in grid)


def _widened(axis: Axis, other: Axis) -> Axis:
    return replace(axis, first=min(axis.first, other.first), last=max(axis.last, other.last))


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
