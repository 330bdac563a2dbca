# The steps that a job requires, from the network's arrays to those that are written.
"""The order of the reductions: boxes, grid, components, type."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from featx.dtypes import DTYPES, kept_in
from featx.engine.boxes import Boxes
from featx.engine.pooling import Grid, levels_of
from featx.engine.projecting import Components
from featx.engine.reducing import InBoxes, Reduction, StoredType
from featx.engine.scaling import Scaled
from featx.requests import Job
from featx.runs.basis import Basis
from featx.values import FINAL, MODULE, Field, Level


def reductions_of(
    job: Job,
    fields: Sequence[Field],
    levels: Sequence[Level],
    boxes: Boxes | None = None,
    basis: Basis | None = None,
) -> list[Reduction]:
    """Return the steps that a job requires, in order.

    Parameters
    ----------
    job : Job
        Its options.
    fields, levels : sequence of Field, sequence of Level
        Those of the pyramid: levels, the final map, and the maps of modules.
    boxes : Boxes or None
        Those whose features are kept, taken from the whole maps.
    basis : Basis or None
        The components; None as long as only shapes are wanted.
    """
    by_key = {level.key: level for level in levels}
    steps: list[Reduction] = []

    def there() -> list[Field]:
        """Return the fields after the steps so far."""
        return reduce(lambda found, step: step.fields(found), steps, list(fields))

    def maps() -> dict[int, str]:
        """Return the names of the maps among them, by their places."""
        return {place: field.key for place, field in enumerate(there()) if field.key in by_key}

    beside = kept_in(job.dtype)
    if boxes is not None:
        named = {place: by_key[key] for place, key in maps().items()}
        of_levels = {place: level for place, level in named.items() if level.part != MODULE and level.key != FINAL}
        steps.append(InBoxes(boxes, of_levels, job.maps is not False, beside))
    if job.grid:
        steps.append(Grid(job.grid, job.grid_pool, levels_of(there(), by_key)))
    if job.components:
        steps.append(Components(job.components, maps(), basis))
    if DTYPES[job.dtype].scaled:
        steps.append(Scaled(maps()))
    return [*steps, StoredType(beside)]
