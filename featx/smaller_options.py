# Options that make maps smaller before they are stored: fewer cells, fewer channels.
"""Options as frozen values in a group, as in `featx.options`, which has the others."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from featx.conversions import as_place, one_of, size, whole
from featx.declaring import Options, group, option

GRID_POOLS = ("avg", "max")

# Photos on which the components are fitted if no number is given.
FIT_ON = 1000


def grid_size(name: str, value: object) -> tuple[int, int]:
    """Expect height and width of a grid: 7, 4x6, (4, 6)."""
    return size(name, value, "cells per side (7) or height x width (4x6)")


@group
class SmallerOptions(Options):
    """How maps are made smaller, in this order."""

    panel: ClassVar[str] = "Size and format"

    grid: tuple[int, int] | None = option(
        default=None,
        help="Pool each map to at most this many cells of equal size: per side (7), or height x width (4x6); 1 gives "
        "one vector per level.",
        convert=grid_size,
        metavar="N|HxW",
        accepts="int | tuple[int, int] | None",
        in_recipe=True,
    )
    grid_pool: str = option(
        default="avg",
        help="How the cells of --grid are made: by the mean of what they cover, or by its maximum.",
        convert=one_of(*GRID_POOLS),
        metavar="|".join(GRID_POOLS),
        in_recipe=True,
    )
    components: int | None = option(
        default=None,
        help="Project each map onto its first N principal components; levels with at most N channels stay as they are.",
        convert=whole(1, 1 << 20),
        metavar="N",
        in_recipe=True,
    )
    fit_on: int | None = option(
        default=None,
        help="Fit the components on the first N images.",
        convert=whole(1),
        metavar="N",
        shown=str(FIT_ON),
    )
    basis: Path | str | None = option(
        default=None,
        help="Take the components from another run, or its basis.npz, instead of fitting them; either may be a URL.",
        convert=as_place,
        metavar="RUN|FILE",
        accepts="str | PathLike[str] | None",
        in_recipe=True,
    )
