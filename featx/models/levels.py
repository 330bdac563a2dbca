# Levels: chosen from those of a network, measured on maps and on the grids of their cells, checked against outputs.
"""What every model library does with its levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from msgspec import structs
from torch import Tensor

from featx.errors import ModelError, UsageError
from featx.models.descriptions import Description
from featx.models.tracing import Grid, Tracer
from featx.values import Field, Level, Spacing


def choose(
    name: str,
    offered: Sequence[Level],
    out_indices: Sequence[int] | Literal["all"] | None,
    strides: Sequence[float] | None,
    default: Sequence[int],
) -> tuple[int, ...]:
    """Turn what was asked for into level indices: sorted, without repeats, all in range.

    Of several levels at one stride the deepest is taken.

    Raises
    ------
    UsageError
        If none is named.
    ModelError
        If there is no such level; the error says which there are.
    """
    for name_of, asked in (("--strides", strides), ("--out-indices", out_indices)):
        if asked is not None and not asked:
            raise UsageError(f"{name_of} names no level", "Leave it out, or name one")
    if strides is not None:
        deepest = {level.stride: level.index for level in offered}
        absent = [stride for stride in strides if stride not in deepest]
        if absent:
            there = ", ".join(f"{stride:g}" for stride in deepest if isinstance(stride, float | int))
            raise ModelError(
                f"{name} has no level at stride {', '.join(f'{stride:g}' for stride in absent)}", f"It has {there}"
            )
        return tuple(sorted({deepest[stride] for stride in strides}))
    if out_indices == "all":
        return tuple(level.index for level in offered)
    indices = default if out_indices is None else out_indices
    first, last = offered[0].index, offered[-1].index
    counted = {index: index + last + 1 if index < 0 else index for index in indices}
    absent_indices = [index for index, meant in counted.items() if not first <= meant <= last]
    if absent_indices or not indices:
        raise ModelError(
            f"{name} has no level {', '.join(map(str, absent_indices))}",
            f"It has {len(offered)}: {first} to {last}, or -1 to {first - last - 1} from the end",
        )
    return tuple(sorted(set(counted.values())))


def to_nchw(layout: str, maps: Sequence[Tensor]) -> list[Tensor]:
    """Return maps as (B, C, H, W): swin, mambaout and their like give (B, H, W, C). Anything but maps is left alone."""
    if layout != "NHWC":
        return list(maps)
    return [values.permute(0, 3, 1, 2) if values.ndim == 4 else values for values in maps]


def measure(
    name: str, declared: Sequence[Level], maps: Sequence[Tensor], tracer: Tracer, size: Sequence[int]
) -> tuple[Level, ...]:
    """Give levels the stride, offset and size of their maps, made of one image (3, H, W) under a tracer."""
    measured = check_maps(name, declared, maps)
    return tuple(
        _with_ratio(level if grid is None else placed(level, grid), stated.stride, size)
        for stated, level, grid in zip(declared, measured, map(tracer.grid_of, maps), strict=True)
    )


def fields_of(levels: Sequence[Level]) -> tuple[Field, ...]:
    """Return the arrays of measured levels."""
    return tuple(Field(level.key, (level.channels, level.height or 0, level.width or 0)) for level in levels)


def unsized(description: Description) -> Description:
    """Remove the sizes of maps from a description whose images each have their own size."""

    def without_size(level: Level) -> Level:
        return structs.replace(level, height=None, width=None, ratio=None)

    return replace(
        description,
        levels=tuple(map(without_size, description.levels)),
        final=without_size(description.final) if description.final else None,
        modules=tuple(map(without_size, description.modules)),
        fields=tuple(
            structs.replace(field, shape=(field.shape[0], None, None)) if len(field.shape) == 3 else field
            for field in description.fields
        ),
    )


def check_maps(name: str, levels: Sequence[Level], maps: Sequence[Tensor]) -> tuple[Level, ...]:
    """Return the levels with the height and width that the maps have.

    Raises
    ------
    ModelError
        If the maps are not those that the levels describe.
    """
    if len(maps) != len(levels):
        raise ModelError(f"{name} gave {len(maps)} maps for {len(levels)} levels", "Please report this model")
    measured = []
    for level, values in zip(levels, maps, strict=True):
        if values.ndim != 4 or values.shape[1] != level.channels:
            raise ModelError(
                f"{name} declares {level.channels} channels for level {level.index}; its map is {tuple(values.shape)}",
                "Please report this model",
            )
        measured.append(structs.replace(level, height=values.shape[2], width=values.shape[3]))
    return tuple(measured)


def require_arrays(name: str, fields: Sequence[Field], arrays: Sequence[Tensor], *, exact: bool) -> None:
    """Check what a network gave for a batch against its description.

    Parameters
    ----------
    name : str
        The model.
    fields : sequence of Field
        Its description.
    arrays : sequence of Tensor
        (B, ...) each.
    exact : bool
        Whether maps must have the described sizes, too; for inputs of other sizes they do not.

    Raises
    ------
    ModelError
        If they differ.
    """
    if len(arrays) != len(fields):
        raise ModelError(f"{name} gave {len(arrays)} arrays for {len(fields)}", "Please report this model")
    for field, values in zip(fields, arrays, strict=True):
        shape = tuple(values.shape[1:])
        alike = field.fits(shape) if exact else (len(shape), shape[0]) == (len(field.shape), field.shape[0])
        if not alike:
            raise ModelError(
                f"{name} gave {field.key} of shape {shape}, not {field.shape} as described", "Please report this model"
            )


def _with_ratio(level: Level, declared: Spacing | None, size: Sequence[int]) -> Level:
    """Record how input and map compare where that is not the declared stride."""
    ratio = (size[1] / (level.height or 1), size[2] / (level.width or 1))
    return (
        level
        if ratio == (declared, declared)
        else structs.replace(level, ratio=(round(ratio[0], 4), round(ratio[1], 4)))
    )


def placed(level: Level, grid: Grid) -> Level:
    """Give a level the stride and offset of its cells, and how far apart the centres of its branches lie."""
    spreads = [round(axis.spread, 3) for axis in grid]
    # A mean needs no more digits; an exact offset only loses the rounding errors in its last ones.
    offsets = [round(axis.offset, 3 if spread else 10) for axis, spread in zip(grid, spreads, strict=True)]
    return structs.replace(
        level,
        stride=_spacing(grid[0].stride, grid[1].stride),
        offset=_spacing(*offsets),
        offset_spread=_spacing(*spreads),
    )


def _spacing(vertical: float, horizontal: float) -> Spacing:
    """One number where both agree; whole numbers as integers."""
    first, second = (int(value) if float(value).is_integer() else value for value in (vertical, horizontal))
    return first if first == second else (first, second)
