# Tiling: how a run's pictures are cut into tiles, which follows from the options and from what the network sees.
"""Tiles and halos that suit a network."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any

from featx.dtypes import ROUNDING
from featx.errors import ModelError
from featx.images.tiles import Size, Tiling

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from featx.models.pyramid import Blueprint
    from featx.requests import Job

# Bytes of a picture's maps that memory holds, since larger ones are on the disk until they are written.
IN_MEMORY = 1 << 28

# Bytes of the maps of a row of tiles that memory holds, since more wait on the disk.
BESIDE = 1 << 29

# Bytes of a map's rows that are made smaller at a time, and how often they are in memory then.
AT_A_TIME, COPIES = 1 << 26, 4


def tiling_of(blueprint: Blueprint, job: Job) -> Tiling | None:
    """Work out how pictures are cut; None if they are not.

    Raises
    ------
    ModelError
        If maps of tiles cannot be put together, since their cells lie elsewhere than those of the whole picture's.
    """
    if job.tile is None:
        return None
    from featx.models.reach import reach_of  # which loads torch

    multiple, least = blueprint.description.input.multiple or 1, blueprint.description.input.least or 1
    tile = _up(max(job.tile, least), multiple)
    _require_in_step(blueprint, tile)
    reach = reach_of(blueprint)
    if job.halo is not None:
        halo = _up(job.halo, multiple)
    elif reach is not None and _up(reach, multiple) <= tile // 2:
        halo = _up(reach, multiple)
    else:
        halo = _up(tile // 4, multiple)
    return Tiling(tile, halo, reach, job.level_mpp)


def said_of(tiling: Tiling, blueprint: Blueprint, job: Job) -> Iterator[str]:
    """Say what was rounded, and whether tiles will give the same maps."""
    multiple = blueprint.description.input.multiple or 1
    given = (("--tile", job.tile, tiling.tile), ("--halo", job.halo, tiling.halo))
    rounded = [f"{name} {asked} became {used}" for name, asked, used in given if asked not in (None, used)]
    if rounded:
        yield f"{', '.join(rounded)}: {blueprint.description.name} takes multiples of {multiple} pixels"
    if tiling.reach is None:
        yield (
            f"Maps of tiles will be approximate: in {blueprint.description.name} every cell depends on the whole "
            "picture, or on pixels too far away to be measured"
        )
    elif tiling.blends:
        yield (
            f"Maps of tiles will be approximate: {blueprint.description.name} sees {tiling.reach} pixels beyond a "
            f"tile, and the halo has {tiling.halo}; --halo {_up(tiling.reach, multiple)} makes them exact"
        )


def facts_of(tiling: Tiling, deviation: Mapping[str, float] | None, precision: str) -> dict[str, Any]:
    """Return what a summary says of tiles.

    Parameters
    ----------
    tiling : Tiling
        How pictures are cut.
    deviation : mapping or None
        By how much the maps of a part of a picture, in tiles, differ from those in one pass; None if none was large.
    precision : str
        What the network computes in.
    """
    measured = max((deviation or {}).values(), default=0.0)
    exact = not tiling.blends and measured <= ROUNDING[precision]
    facts = {"tile": tiling.tile, "halo": tiling.halo, "reach": tiling.reach, "exact": exact}
    return {**facts, **({"deviation": dict(deviation)} if deviation else {})}


def measured(facts: dict[str, Any]) -> Iterator[str]:
    """Say by how much maps of tiles differ, where they do."""
    if facts["exact"] or not facts.get("deviation"):
        return
    key, largest = max(facts["deviation"].items(), key=itemgetter(1))
    yield (
        f"Maps of tiles differ from those of one pass by up to {largest:.2g} of the largest value ({key}), measured "
        "on a part of a picture"
    )


def known_deviation(summary: Mapping[str, Any] | None) -> dict[str, float] | None:
    """Return by how much maps of tiles differ, if an earlier call has measured it."""
    found: dict[str, float] | None = ((summary or {}).get("tiling") or {}).get("deviation")
    return found


def tiling_again(summary: dict[str, Any]) -> Tiling | None:
    """Return how the pictures of a run were cut."""
    found = summary.get("tiling")
    return found and Tiling(found["tile"], found["halo"], found["reach"], summary["recipe"]["level_mpp"])


def beside_passes(tiling: Tiling, size: Size, arrays: int) -> int:
    """Return the bytes that a picture in tiles takes beside its passes: a row of its tiles, as pixels and as maps.

    Parameters
    ----------
    tiling : Tiling
        How it is cut.
    size : (int, int)
        Height and width of the input.
    arrays : int
        Bytes of what is kept of the maps of one tile, of its whole window.
    """
    height, width = tiling.window(size)
    across = size[1] / width
    copies = 3 if tiling.blends else 1  # what the row above gave, and the weighted maps of a tile
    whole = arrays * across * size[0] / height
    rows = arrays * across if tiling.blends else min(arrays * across * min(1.0, tiling.tile / height), BESIDE)
    return int(3 * height * size[1] + copies * rows + COPIES * min(rows, AT_A_TIME) + min(whole, IN_MEMORY))


def _require_in_step(blueprint: Blueprint, tile: int) -> None:
    """Refuse arrays that are no maps, and maps that are not twice as large for a picture twice as large (inception)."""
    once, twice = (blueprint.fields_at((side, side)) for side in (tile, 2 * tile))
    for small, large in zip(once, twice, strict=True):
        if len(small.shape) != 3:
            raise ModelError(
                f"{small.key} is no map, and --tile puts maps together", "Leave out --tile, or what adds that array"
            )
        if any(2 * (length or 0) != other for length, other in zip(small.shape[1:], large.shape[1:], strict=True)):
            raise ModelError(
                f"{blueprint.description.name} cannot be run in tiles: its {small.key} does not grow in step with its "
                "input, so the cells of tiles lie elsewhere than those of the whole picture",
                "Leave out --tile, or choose another model",
            )


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
