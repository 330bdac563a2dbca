# Where the cells of a map lie in the input: grids of cells, followed through a network that runs on shapes alone.
"""Strides and offsets, read off a network while it runs on the meta device.

Every tensor that descends from the input carries the grid of its cells: their spacing, and where in the input the
centre of cell 0 lies. Convolutions, pools, pads, strided slices and resampling move it by the usual arithmetic (Araujo,
Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019); everything else passes it
on. Where branches with different centres are added up, the grid keeps how far apart they lie, and their mean.

Two things do not move cells: global pooling, whose result has no place, and attention, whose output stays at its query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from featx.models.axes import Axis

aten = torch.ops.aten

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

    def cells_of(self, value: Tensor) -> Grid | None:
        """Return the grid of any tensor, whose cells may have been merged by reshaping since."""
        found: Grid | None = self._grids.get(value)
        return found

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        descended = [value for value in _tensors((args, kwargs)) if value in self._grids]
        if descended:
            follow = _RULES.get(function.overloadpacket, _pass_on)
            if follow in (_pass_on, _concatenate):
                descended.sort(key=Tensor.numel, reverse=True)
            grids = [self._grids[value] for value in descended]
            for output in _tensors(result):
                grid = follow(grids, output, args)
                if grid is not None:
                    self._grids[output] = grid
                elif output in self._grids:  # changed in place
                    del self._grids[output]
        return result


# A rule is given the grids of those arguments that have one, in their order; for sums and concatenations, those of the
# largest first.


def _pass_on(grids: list[Grid], output: Tensor, args: tuple[Any, ...]) -> Grid | None:
    """Keep the grid of the largest, joined with others of the same cells (the branches of a sum)."""
    del output, args
    first, second = zip(*(grid for grid in grids if _alike(grid, grids[0])), strict=True)
    return first[0].joined(first[1:]), second[0].joined(second[1:])


def _even_out(grids: list[Grid], output: Tensor, args: tuple[Any, ...]) -> Grid | None:
    """Keep the grid, its branches merged into one: the output of a norm or a matrix counts as a single branch again."""
    del output, args
    return _of_strength(grids[0], 1.0)


def _concatenate(grids: list[Grid], output: Tensor, args: tuple[Any, ...]) -> Grid | None:
    """Join branches that lie side by side, which makes none of them stronger."""
    grid = _pass_on(grids, output, args)
    count = sum(_alike(other, grids[0]) for other in grids)
    return None if grid is None else _of_strength(grid, grid[0].strength / count)


def _product(grids: list[Grid], output: Tensor, args: tuple[Any, ...]) -> Grid | None:
    """Keep the grid whose cells are the rows of the product, or else its columns: an attention's queries.

    Attention within windows shows neither: there the queries come first, unless both have the same cells, and the
    second are what is attended to.
    """
    del args
    for dim in (-2, -1):
        for grid in grids:
            if grid[0].length * grid[1].length == output.shape[dim]:
                return _of_strength(grid, 1.0)
    return _of_strength(grids[-1] if _alike(grids[0], grids[-1]) else grids[0], 1.0)


def _convolution(grids: list[Grid], output: Tensor, args: tuple[Any, ...]) -> Grid | None:
    image, weight, _, stride, padding, dilation, transposed = args[:7]
    grid = _of_strength(grids[0], 1.0)
    if image.ndim != 4:
        return grid
    if transposed:
        return _unslide(_fitted(grid, *image.shape[2:]), output.shape[2:], weight.shape[2:], stride, padding, dilation)
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
        # Windows of an attention, folded into the batch: a cell stays where it is as long as its neighbours do, or if
        # it is a window itself (tnt).
        stays = image.shape[-2:] == output.shape[-2:] or image.shape[0] == grid[0].length * grid[1].length
        return grid if stays else None
    return _by_axis(Axis.windowed, here, output.shape[-2:], *window)


def _unslide(grid: Grid | None, sides: Sequence[int], *window: Any) -> Grid | None:
    return None if grid is None else _by_axis(Axis.unwindowed, grid, sides, *window)


def _by_axis(change: Callable[..., Axis], grid: Grid, sides: Sequence[int], *window: Any) -> Grid:
    """Apply a change of axes to both; what it is given is one number for both, or a pair."""
    rows, columns = zip(*map(_pair, window), strict=True) if window else ((), ())
    return change(grid[0], sides[0], *rows), change(grid[1], sides[1], *columns)


def _unfold(grids: list[Grid], output: Tensor, args: tuple[Any, ...]) -> Grid | None:
    """Follow im2col: the cells are windows now."""
    del output
    image, kernel, dilation, padding, step = args
    here = _fitted(grids[0], *image.shape[-2:])
    if here is None:
        return None
    sides = [
        (axis.length + 2 * pad - spacing * (side - 1) - 1) // stride + 1
        for axis, side, spacing, pad, stride in zip(here, kernel, dilation, padding, step, strict=True)
    ]
    return _by_axis(Axis.windowed, here, sides, kernel, step, padding, dilation)


def _fold(grids: list[Grid], output: Tensor, args: tuple[Any, ...]) -> Grid | None:
    """Follow col2im: windows become cells again."""
    _, _, kernel, dilation, padding, step = args
    return _unslide(grids[0], output.shape[-2:], kernel, step, padding, dilation)


def _adaptive_pool(grids: list[Grid], output: Tensor, args: tuple[Any, ...]) -> Grid | None:
    del args
    height, width = output.shape[-2:]
    return None if 1 in (height, width) else _fitted(grids[0], height, width)


def _reduce(grids: list[Grid], output: Tensor, args: tuple[Any, ...]) -> Grid | None:
    """Drop the grid where an axis of the map is pooled."""
    image, dims = args[0], args[1] if len(args) > 1 else ()
    reduced = {dim % image.ndim for dim in ([dims] if isinstance(dims, int) else dims or range(image.ndim))}
    if any(_dim_of(grids[0], image, axis) in reduced for axis in range(2)):
        return None
    return _pass_on(grids, output, args)


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
    grid = _fitted(grids[0], *args[0].shape[-2:])
    corners = len(args) > 2 and args[2] is True
    return None if grid is None else _by_axis(partial(Axis.scaled, corners=corners), grid, output.shape[-2:])


def _resample_nearest(grids: list[Grid], output: Tensor, args: tuple[Any, ...]) -> Grid | None:
    grid = _fitted(grids[0], *args[0].shape[-2:])
    return None if grid is None else _by_axis(Axis.nearest, grid, output.shape[-2:])


def _roll(grids: list[Grid], output: Tensor, args: tuple[Any, ...]) -> Grid | None:
    """Follow a map that is rolled, as shifted windows do, and roll back later."""
    image, shifts, dims = args
    grid = grids[0]
    for axis in range(2):
        for shift, dim in zip(shifts, dims, strict=True):
            if _dim_of(grids[0], image, axis) == dim % image.ndim:
                grid = _replaced(grid, axis, grid[axis].cut(output.shape[dim], -shift))
    return grid


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
    aten.cat: _concatenate,
    aten.mean: _reduce,
    aten.amax: _reduce,
    aten.im2col: _unfold,
    aten.col2im: _fold,
    aten._adaptive_avg_pool2d: _adaptive_pool,  # noqa: SLF001 - its name in torch
    aten.adaptive_max_pool2d: _adaptive_pool,
    aten.constant_pad_nd: _pad,
    aten.reflection_pad2d: _pad,
    aten.replication_pad2d: _pad,
    aten.slice: _slice,
    aten.roll: _roll,
    aten.pixel_shuffle: _resample,
    aten.upsample_nearest2d: _resample_nearest,
    aten._upsample_nearest_exact2d: _resample,  # noqa: SLF001
    aten.upsample_bilinear2d: _resample,
    aten.upsample_bicubic2d: _resample,
    aten._upsample_bilinear2d_aa: _resample,  # noqa: SLF001
    aten._upsample_bicubic2d_aa: _resample,  # noqa: SLF001
}


def _fitted(grid: Grid, height: int, width: int) -> Grid | None:
    """Bring a grid to the size that a tensor has by now, its cells having been merged by reshaping."""
    first, second = grid[0].merged(height), grid[1].merged(width)
    return None if first is None or second is None else (first, second)


def _alike(grid: Grid, other: Grid) -> bool:
    return grid[0].is_like(other[0]) and grid[1].is_like(other[1])


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
