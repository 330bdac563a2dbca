# The rehearsal: passes over a run's first images, before any is written, to fit its components and to measure losses.
"""What a run has to know of its images before it begins."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from featx import files
from featx.engine.computing import Computer
from featx.engine.events import Phase
from featx.engine.fitting import Cells, Fit
from featx.engine.isolation import Reader
from featx.engine.local import processed
from featx.engine.losses import Losses, Squares
from featx.engine.pooling import Grid
from featx.engine.projecting import Components
from featx.engine.reducing import Reduction
from featx.engine.room import shared
from featx.engine.stopping import InterruptedByError
from featx.errors import FeatxError
from featx.runs.basis import network_of
from featx.runs.formats import Array, Record, Stored
from featx.smaller_options import FIT_ON
from featx.text import count_of, images
from featx.values import Item

if TYPE_CHECKING:
    from featx.engine.execution import Callers
    from featx.engine.setting import Setting

# Images on which losses are measured.
SAMPLE = 16


def rehearsed(setting: Setting, items: Sequence[Item], callers: Callers, notes: deque[str]) -> Setting:
    """Fit the components of a run that has none yet, and measure what its options cost; returns the setting with both.

    Parameters
    ----------
    setting : Setting
        That of the call.
    items : sequence of Item
        All of its images, in order.
    callers : Callers
        Whom to tell, and when to stop.
    notes : deque of str
        What there is to say.

    Raises
    ------
    FeatxError
        If no image can be used, or there are too few for so many components.
    """
    job, levels = setting.job, _maps(setting)
    if not (setting.plan.to_do and levels and (job.grid or job.components or job.dtype != "float32")):
        return setting
    grid = next((step for step in setting.computers[0].reductions if isinstance(step, Grid)), None)
    if job.components and setting.basis is None:
        setting = _fitted(setting, items, levels, grid, callers, notes)
    if (cost := (setting.earlier or {}).get("cost")) is None:
        components = _components(setting, levels)
        losses = Losses()
        steps = [Squares(levels, grid, components, job.dtype)]
        callers.listener(Phase("measuring what the smaller maps lose"))
        _pass(setting, setting.plan.to_do[:SAMPLE], steps, losses.add, callers, notes)
        cost = losses.summary()
    return replace(setting, cost=cost)


def _maps(setting: Setting) -> dict[int, Any]:
    """Return the levels whose maps are kept, as the network has them, by their places among its arrays."""
    pyramid = setting.computers[0].pyramid
    every = (*pyramid.levels, *([pyramid.final] if pyramid.final else ()))
    kept = {field.key for field in setting.computers[0].fields}
    by_key = {level.key: level for level in every if level.key in kept}
    return {place: by_key[field.key] for place, field in enumerate(pyramid.fields) if field.key in by_key}


def _components(setting: Setting, levels: Mapping[int, Any]) -> Components | None:
    if setting.job.components is None:
        return None
    keys = {place: level.key for place, level in levels.items()}
    return Components(setting.job.components, keys, setting.basis)


def _fitted(
    setting: Setting,
    items: Sequence[Item],
    levels: Mapping[int, Any],
    grid: Grid | None,
    callers: Callers,
    notes: deque[str],
) -> Setting:
    """Fit components on the first images."""
    job = setting.job
    count = job.components or 0
    wide = {place: level for place, level in levels.items() if level.channels > count}
    if not wide:
        least = max((level.channels for level in levels.values()), default=0)
        raise FeatxError(
            f"No level has more than {count_of(count, 'channel')}, so there is nothing to project",
            f"The widest has {least}: use a smaller --components, or leave it out",
        )
    first = items[: job.fit_on or FIT_ON]
    fit = Fit(list(wide.values()), count)
    callers.listener(Phase(f"fitting {count_of(count, 'component')} on {images(len(first))}"))
    used = _pass(setting, first, [Cells(wide, grid)], fit.add, callers, notes)
    if used < len(first):
        notes.append(f"The components were fitted on {images(used)}; {images(len(first) - used)} cannot be used")
    pyramid = setting.computers[0].pyramid
    basis = fit.basis(network_of(pyramid, job))
    for computer in setting.computers:
        computer.reductions = [
            replace(step, basis=basis) if isinstance(step, Components) else step for step in computer.reductions
        ]
    return replace(setting, basis=basis, recipe={**setting.recipe, "basis": basis.sha256})


def _pass(
    setting: Setting,
    items: Sequence[Item],
    steps: Sequence[Reduction],
    take: Callable[[Mapping[str, Array]], None],
    callers: Callers,
    notes: deque[str],
) -> int:
    """Compute images, hand what the steps make of each to `take`, in order, and return how many there were.

    Images are read in processes of their own: what a bad one does to them stays there.
    """
    job, first = setting.job, setting.computers[0]
    computers = [Computer(each.pyramid, steps, each.largest, each.on_note) for each in setting.computers]
    taking = _Taking(take)
    room = partial(shared, job, setting.blueprint, setting.workers.batch_size, first.pyramid.device)
    with files.temporary_folder() as scratch:
        reader = Reader(first.pyramid.preprocessor, job.limits, scratch, isolate=True)
        left = len(items)
        with closing(reader):
            for group in processed(items, computers, taking, setting.workers, reader, room, callers.stop, notes):
                left -= len(group)
        if left:
            raise InterruptedByError
    return taking.count


class _Taking:
    """A writer that keeps nothing; see `featx.runs.formats.Writer`."""

    largest, group, seconds, room = sys.maxsize, 1, 2.0, 1 << 28

    def __init__(self, take: Callable[[Mapping[str, Array]], None]) -> None:
        self._take = take
        self.count = 0

    def write(self, record: Record) -> Stored:
        """Do nothing yet: several threads are here at once, in any order."""
        return Stored(sum(values.nbytes for values in record.arrays.values()), "", record.arrays)

    def commit(self, group: Sequence[Stored]) -> list[str]:
        """Hand on what one thread has in the order of the images."""
        for stored in group:
            self._take(stored.content)
            self.count += 1
        return [""] * len(group)

    def abandon(self, kept: Sequence[Stored]) -> None:
        """Nothing was begun."""

    def collect_garbage(self, done: Mapping[str, str], digests: Callable[[], Mapping[str, str]]) -> None:
        """Nothing is left behind."""
