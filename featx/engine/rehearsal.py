# The rehearsal: passes over a run's first images, before any is written, to fit its components and to measure losses.
"""What a run has to know of its images before it begins."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from featx.engine.computing import Computer
from featx.engine.events import Phase
from featx.engine.execution import Callers, Place
from featx.engine.fitting import Cells, Fit, require_cells
from featx.engine.isolation import Reader
from featx.engine.local import processed
from featx.engine.losses import Losses, Squares
from featx.engine.mosaic import Equipment, Tiles
from featx.engine.pooling import Grid
from featx.engine.projecting import Components
from featx.engine.reducing import Reduction
from featx.engine.resources import use_backend
from featx.engine.room import shared
from featx.engine.setting import Setting
from featx.engine.stopping import InterruptedByError
from featx.errors import UsageError
from featx.runs.basis import network_of
from featx.runs.formats import Array, Record, Stored
from featx.smaller_options import FIT_ON
from featx.text import count_of, images
from featx.values import Item, Level

# Images on which losses are measured.
SAMPLE = 16


def rehearsed(setting: Setting, items: Sequence[Item], place: Place, callers: Callers, notes: deque[str]) -> Setting:
    """Fit the components of a run that has none yet, and measure what its options cost; returns the setting with both.

    Parameters
    ----------
    setting : Setting
        That of the call.
    items : sequence of Item
        All of its images, in order.
    place : Place
        What is marked there while images are read tells the next call which of them a crash is the fault of.
    callers : Callers
        Whom to tell, and when to stop.
    notes : deque of str
        What there is to say.

    Raises
    ------
    FeatxError
        If no image can be used, or there are too few for so many components.
    """
    known = (setting.earlier or {}).get("cost")
    fits = bool(setting.job.components) and setting.basis is None
    levels = _smaller(setting) if setting.plan.to_do else {}
    if not levels or not (fits or known is None):
        return replace(setting, cost=known)
    if setting.job.engine != "local":  # each of its workers prepares the network for itself alone
        use_backend(setting.computers, setting.workers)
    rehearsal = _Rehearsal(setting, place, callers, notes)
    if fits:
        setting = _fitted(setting, items, levels, rehearsal)
    return replace(setting, cost=known or _cost(setting, levels, rehearsal))


def require_enough(setting: Setting, items: Sequence[Item]) -> None:
    """Refuse components that cannot be fitted, before anything is removed for them.

    Raises
    ------
    UsageError
        If no level has more channels, or the images have too few cells.
    """
    count, levels = setting.job.components, _smaller(setting)
    if count is None or setting.basis is not None or not levels:
        return
    if not (wide := _wide(levels, count)):
        most = max(level.channels for level in levels.values())
        raise UsageError(
            f"No level has more than {count_of(count, 'channel')}, so there is nothing to project",
            f"The widest has {most}: use fewer --components, or leave them out",
        )
    first = len(items[: setting.job.fit_on or FIT_ON])
    for level in map(setting.computers[0].level, wide.values()):
        if level.height is not None and level.width is not None:
            require_cells(first, first * level.height * level.width, level.key, count)


def _smaller(setting: Setting) -> dict[int, Level]:
    """Return the levels whose maps are made smaller, as the network has them, by their places among its arrays."""
    job, pyramid = setting.job, setting.computers[0].pyramid
    if not (job.grid or job.components or job.dtype != "float32"):
        return {}
    kept = {field.key for field in setting.computers[0].fields}
    by_key = {level.key: level for level in pyramid.maps if level.key in kept}
    return {place: by_key[field.key] for place, field in enumerate(pyramid.fields) if field.key in by_key}


def _wide(levels: Mapping[int, Level], count: int) -> dict[int, Level]:
    return {place: level for place, level in levels.items() if level.channels > count}


def _grid(setting: Setting) -> Grid | None:
    return next((step for step in setting.computers[0].reductions if isinstance(step, Grid)), None)


def _fitted(setting: Setting, items: Sequence[Item], levels: Mapping[int, Level], rehearsal: _Rehearsal) -> Setting:
    """Fit components on the first images."""
    job, count = setting.job, setting.job.components or 0
    first, wide = items[: job.fit_on or FIT_ON], _wide(levels, count)
    fit = Fit(list(wide.values()), count)
    what = f"fitting {count_of(count, 'component')} on {images(len(first))}"
    used = rehearsal(first, [Cells(wide, _grid(setting))], fit.add, what)
    if used < len(first):
        rehearsal.notes.append(f"The components are fitted on {images(used)}: {len(first) - used} cannot be used")
    basis = fit.basis(network_of(setting.computers[0].pyramid, job))
    for computer in setting.computers:
        computer.reductions = [
            replace(step, basis=basis) if isinstance(step, Components) else step for step in computer.reductions
        ]
    return replace(setting, basis=basis, recipe={**setting.recipe, "basis": basis.sha256})


def _cost(setting: Setting, levels: Mapping[int, Level], rehearsal: _Rehearsal) -> dict[str, Any]:
    """Measure what is lost, on the first images of the call; not with tiles, since no pass has the whole map."""
    job, keys = setting.job, {place: level.key for place, level in levels.items()}
    losses = Losses()
    if job.tile:
        rehearsal.notes.append("What smaller maps lose is not measured with --tile")
        return losses.summary()
    components = Components(job.components, keys, setting.basis) if job.components else None
    steps = [Squares(levels, _grid(setting), components, job.dtype)]
    rehearsal(setting.plan.to_do[:SAMPLE], steps, losses.add, "measuring what smaller maps lose")
    return losses.summary()


@dataclass(frozen=True, slots=True)
class _Rehearsal:
    """Passes of which nothing is written."""

    setting: Setting
    place: Place
    callers: Callers
    notes: deque[str]

    def __call__(
        self, items: Sequence[Item], steps: Sequence[Reduction], take: Callable[[Mapping[str, Array]], None], what: str
    ) -> int:
        """Compute images, hand what the steps make of each to `take`, in order, and return how many there were."""
        setting, place = self.setting, self.place
        self.callers.listener(Phase(what))
        first = setting.computers[0]
        computers = [Computer(each.pyramid, steps, each.largest, each.on_note) for each in setting.computers]
        taking, stop = _Taking(take), self.callers.stop
        room = partial(shared, setting.job, setting.blueprint, setting.workers.batch_size, first.pyramid.device)
        isolate = setting.job.isolate or bool(place.suspected)
        limits, tiling = setting.job.limits, setting.tiling
        reader = Reader(
            first.pyramid.preprocessor, limits, place.unfinished, place.apart, isolate=isolate, tiling=tiling
        )
        common = (computers, setting.workers, reader, limits, place.unfinished)
        kit = Equipment(*common, taking.largest, stop.asked, setting.job.force)
        tiles = Tiles(tiling, kit, {}) if tiling else None  # what it would say of a picture, the run says
        left = len(items)
        with closing(reader):
            for group in processed(items, computers, taking, setting.workers, reader, room, stop, self.notes, tiles):
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
