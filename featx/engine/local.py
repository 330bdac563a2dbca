# The local engine: the pipeline in this process; the workers of other engines run it as well.
"""Processing images in one process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from featx.engine import pipeline
from featx.engine.events import Phase
from featx.engine.execution import Callers, Place
from featx.engine.isolation import Reader
from featx.engine.mosaic import Equipment, Tiles
from featx.engine.resources import Workers, machine, overlapping, use_backend
from featx.engine.room import shared
from featx.engine.stopping import Stop
from featx.engine.tiling import known_deviation
from featx.engine.work import stat_within
from featx.errors import StuckError
from featx.images import locators
from featx.values import Item, Outcome

if TYPE_CHECKING:
    from featx.engine.boxes import Boxes
    from featx.engine.computing import Computer
    from featx.engine.room import Room
    from featx.engine.setting import Setting
    from featx.runs.formats import Writer


class LocalEngine:
    """Processing in this process; see `featx.engine.execution.Engine`."""

    def __init__(self, setting: Setting, boxes: Boxes | None, callers: Callers, notes: deque[str]) -> None:
        del boxes  # which the computers know
        self.setting, self._callers, self._notes = setting, callers, notes
        self._reader: Reader | None = None
        self._tiles: Tiles | None = None
        if setting.plan.to_do and setting.job.backend != "torch":
            callers.listener(Phase(f"preparing the network for {setting.job.backend}"))
        if setting.plan.to_do:  # converting or compiling is slow, and is not done unnecessarily
            use_backend(setting.computers, setting.workers)

    def processed(self, items: list[Item], place: Place) -> Generator[list[Outcome]]:
        """Have the pipeline process items."""
        setting, job = self.setting, self.setting.job
        self._reader = Reader(
            setting.computers[0].pyramid.preprocessor,
            job.limits,
            place.unfinished,
            place.apart,
            isolate=job.isolate or bool(place.suspected),
            hashed=job.hash_inputs,
            captured=self._callers.captured,
            tiling=setting.tiling,
        )
        device = setting.computers[0].pyramid.device
        room = partial(shared, job, setting.blueprint, setting.workers.batch_size, device)
        stop, notes = self._callers.stop, self._notes
        if setting.tiling:
            common = (setting.computers, setting.workers, self._reader, job.limits, place.unfinished)
            kit = Equipment(*common, place.writer.largest, stop.asked, job.force)
            self._tiles = Tiles(setting.tiling, kit, known_deviation(setting.earlier), notes.append)
        every = (items, setting.computers, place.writer, setting.workers, self._reader, room, stop, notes, self._tiles)
        yield from processed(*every)

    @property
    def largest_pass(self) -> int:
        """The most images in one pass of the size that took the fewest."""
        return min(computer.smallest for computer in self.setting.computers)

    @property
    def deviation(self) -> dict[str, float] | None:
        """By how much maps of tiles differ from those of one pass."""
        return self._tiles.deviation if self._tiles else None

    def close(self) -> None:
        """End the processes that images are read in."""
        if self._reader:
            self._reader.close()


def processed(
    items: Sequence[Item],
    computers: Sequence[Computer],
    writer: Writer,
    workers: Workers,
    reader: Reader,
    room: Callable[[], Room | None],
    stop: Stop,
    notes: deque[str],
    tiles: Tiles | None = None,
) -> Generator[list[Outcome]]:
    """Have the pipeline process items, and begin again without an image that hangs; see `featx.engine.pipeline.run`."""
    left = {item.key: item for item in items}

    def passes() -> int:
        return sum(computer.passes for computer in computers)

    with machine([computer.pyramid.device for computer in computers], workers):
        while left and not stop.asked():
            ordered = locators.in_order(list(left.values()))
            readers = overlapping(workers, ordered)
            outcomes = pipeline.run(computers, ordered, writer, readers, reader, stop.asked, room(), tiles)
            try:
                with closing(outcomes), stop.gently(passes):
                    for group in outcomes:
                        for outcome in group:
                            del left[outcome.item.key]
                        yield group
            except StuckError as stuck:
                notes.append("An image hung: images are now decoded in separate processes")
                reader.give_up()
                if left.pop(stuck.item.key, None):
                    yield [Outcome(stuck.item, stat_within(stuck.item.path), stage="decode", error=str(stuck))]
