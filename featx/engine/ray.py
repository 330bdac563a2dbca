# The Ray engine: Ray Data hands blocks of images to workers, whose outcomes are recorded here.
"""Processing images on a Ray cluster.

The workers run the pipeline of the local engine, and write where they are. Ray gives a block whose worker is lost to
another one; the same images then get the same bytes under the same names. This process alone writes the manifest.
"""

from __future__ import annotations

import pickle
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace as changed

from featx.engine.children import LOOK_EVERY
from featx.engine.cluster import connected, layout_of, nodes, shortage
from featx.engine.events import Phase
from featx.engine.execution import Callers, Place
from featx.engine.ray_worker import STOPPED, Answer, Assignment, Block, Worker, mark_of
from featx.errors import FeatxError, UsageError, first_line
from featx.images import locators
from featx.paths import absolute, expanded, here
from featx.runs.layout import BASIS
from featx.runs.recipe import facts_of
from featx.values import Item, Outcome

if TYPE_CHECKING:
    from featx.engine.boxes import Boxes
    from featx.engine.setting import Setting
    from featx.requests import Job

# A block has so many rounds of passes, at least and at most: at its ends, reading and computing do not overlap. Within
# that, each worker gets so many blocks, so that all are done at the same time.
LEAST, MOST, BLOCKS = 2, 8, 8

# Tasks that Ray is given; each has several blocks where there are more of those.
TASKS = 10_000


class RayEngine:
    """A Ray cluster; see `featx.engine.execution.Engine`."""

    def __init__(self, setting: Setting, boxes: Boxes | None, callers: Callers, notes: deque[str]) -> None:
        self.setting, self._boxes, self._stop, self._notes = setting, boxes, callers.stop, notes
        self.largest_pass = setting.workers.batch_size
        self._device = setting.computers[0].pyramid.device.type
        self._connection = ExitStack()
        if not setting.plan.to_do:
            return
        address = setting.job.ray_address
        callers.listener(Phase(f"joining the Ray cluster at {address}" if address else "starting Ray"))
        with ExitStack() as stack:
            stack.enter_context(connected(address))
            self._layout = layout_of(nodes(), setting.job, on_gpu=self._device == "cuda")
            self._connection = stack.pop_all()
        notes.extend(shortage(self._layout))

    def processed(self, items: list[Item], place: Place) -> Generator[list[Outcome]]:
        """Have the workers process items."""
        if not items:
            return
        if any(item.path.startswith("memory://") for item in items):
            raise UsageError("memory:// is only seen by this process, not by Ray's workers", "Leave out --engine ray")
        left = {item.key: item for item in items}

        def begun() -> int:
            return sum(1 for _ in place.unfinished.glob(mark_of(Path(), "*").name))

        with (
            closing(self._answers(items, place)) as answers,
            self._told_to_stop(place.unfinished / STOPPED),
            self._stop.gently(begun),
        ):
            for answer in answers:
                self._notes.extend(answer.notes)
                self.largest_pass = min(self.largest_pass, answer.largest_pass or self.largest_pass)
                fresh = [outcome for outcome in answer.outcomes if outcome.item.key in left]
                if fresh:
                    yield [replace(outcome, item=left.pop(outcome.item.key)) for outcome in fresh]
                if answer.error:
                    raise answer.error
                mark_of(place.unfinished, answer.number).unlink(missing_ok=True)
                if self._stop.asked() and not begun():
                    return

    @property
    def deviation(self) -> None:
        """None, since tiles are for the local engine."""
        return None

    def close(self) -> None:
        """Leave the cluster, or end it if it was started here."""
        self._connection.close()

    def _answers(self, items: list[Item], place: Place) -> Generator[Answer]:
        """Have Ray Data hand out the blocks, and yield the answers as they come."""
        import ray
        from ray.data import ActorPoolStrategy, DataContext

        layout, context = self._layout, DataContext.get_current().copy()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.target_max_block_size = 1  # every answer is handed on at once
        rows = [{"block": pickle.dumps(block)} for block in self._blocks(items)]
        with DataContext.current(context):
            answered = ray.data.from_items(rows, override_num_blocks=min(len(rows), TASKS)).map_batches(
                Worker,
                fn_constructor_args=(self._assignment(len(items), place),),
                batch_size=1,
                batch_format="numpy",
                compute=ActorPoolStrategy(
                    min_size=layout.room, max_size=layout.workers, max_tasks_in_flight_per_actor=2
                ),
                num_cpus=layout.cpus,
                num_gpus=layout.gpus,
            )
        batches = iter(answered.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0))
        try:
            with closing(batches):
                for batch in batches:
                    yield from map(pickle.loads, batch["answer"])
        except ray.exceptions.RayError as error:
            raise FeatxError(f"Ray failed: {first_line(error)}", "See Ray's logs, below /tmp/ray") from error

    def _blocks(self, items: Sequence[Item]) -> Iterator[Block]:
        """Cut the images into blocks of whole batches, which workers take in turn."""
        workers, layout = self.setting.workers, self._layout
        passes = workers.forwards if layout.gpus else max(1, layout.cpus // workers.threads)
        ordered, batches = locators.in_order(items), -(-len(items) // workers.batch_size)
        each = min(max(batches // (layout.workers * BLOCKS), LEAST * passes), MOST * passes)
        size = workers.batch_size * min(each, -(-batches // layout.workers))
        for number, start in enumerate(range(0, len(items), size)):
            yield Block(number, [_whole(item) for item in ordered[start : start + size]])

    def _assignment(self, images: int, place: Place) -> Assignment:
        setting = self.setting
        return Assignment(
            _portable(
                setting.job,
                isolate=setting.job.isolate or bool(place.suspected),
                **({"basis": place.folder.absolute() / BASIS, "fit_on": None} if setting.basis else {}),
            ),
            facts_of(setting.computers[0], setting.recipe, setting.job),
            place.folder.absolute(),
            place.unfinished.absolute(),
            images,
            self._device,
            self._layout,
            self._boxes,
            place.apart,
        )

    @contextmanager
    def _told_to_stop(self, file: Path) -> Iterator[None]:
        """Pass a request to stop on to the workers."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(LOOK_EVERY):
                if self._stop.asked():
                    with suppress(OSError):
                        file.touch()
                    return

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            ended.set()


def _whole(item: Item) -> Item:
    """Return an item that another process finds, whatever folder it is in."""
    path = item.path
    return item if path.startswith("/") or "://" in path else changed(item, path=f"{here()}/{path}")


def _portable(job: Job, **more: Any) -> Job:
    """Return a job without its images, whose paths mean the same in another process."""
    weights = job.weights if job.weights in ("pretrained", "random") else absolute(expanded(job.weights))
    return replace(job, inputs=(), listed=(), weights=weights, **more)
