# Planning: the images of a call compared with the manifest, and what is left to do.
"""What earlier calls left to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from featx import paths
from featx.collecting import many_records
from featx.images.locators import with_stats
from featx.requests import Job
from featx.runs import formats, layout
from featx.runs.known import Known, State, count_gone, place_of, read_known, require_same_images, state_of
from featx.sharding import Shard
from featx.values import Item, Outcome

# An earlier call's images are done again in larger batches where there are this many times as many new ones.
WORTH_DOING_AGAIN = 16


@dataclass(slots=True)
class Plan:
    """What earlier calls left to do.

    Attributes
    ----------
    to_do : list of Item
        The images to work on.
    failures : list of Outcome
        Images of this call that failed before and are unchanged.
    done : int
        Images of this call whose features are current.
    kept_done, kept_failed, kept_bytes : int
        Lines of the manifest that are kept, of all images in the folder, and the bytes of their outputs.
    gone : int
        Images that no longer exist, whose features are kept.
    again : int
        Images to do that have features already.
    retried : list of Item
        Images to do that failed before.
    others : int
        Images of the manifest that this call does not name.
    elsewhere : int
        Images of other shards: of this call, and of the manifest.
    numbers : dict of str to int
        Paths of the images to work on to their numbers in this call; empty without shards.
    known_as : dict of str to str
        Keys of this call to those under which the same files are in the manifest already.
    """

    to_do: list[Item] = field(default_factory=list)
    failures: list[Outcome] = field(default_factory=list)
    done: int = 0
    kept_done: int = 0
    kept_failed: int = 0
    kept_bytes: int = 0
    gone: int = 0
    again: int = 0
    retried: list[Item] = field(default_factory=list)
    others: int = 0
    elsewhere: int = 0
    numbers: dict[str, int] = field(default_factory=dict)
    known_as: dict[str, str] = field(default_factory=dict)

    def is_worth_doing_again(self) -> bool:
        """Whether little is there, and the same command makes it again, however often it is interrupted."""
        there = self.kept_done + self.kept_failed + self.again
        return not self.gone and not self.others and 0 < there * WORTH_DOING_AGAIN <= len(self.to_do)

    def renamed(self, items: Iterable[Item]) -> list[Item]:
        """Give images that the manifest has under another key that key."""
        return [replace(item, key=self.known_as.get(item.key, item.key)) for item in items]


@many_records()
def plan_work(
    folder: Path,
    items: list[Item],
    job: Job,
    stale: Callable[[Path, Mapping[str, str]], set[str]] | None = None,
) -> Plan:
    """Compare the images with the manifest; linear, and small enough for a million of them.

    Parameters
    ----------
    folder : Path
        The run's.
    items : list of Item
        The images of this call.
    job : Job
        Its options.
    stale : callable or None
        Given the folder and keys of this call that stand for others there, returns the keys there that have to be done
        again, although image and output are as they were.
    """
    known = {} if job.overwrite else read_known(folder)
    planner = _Planner(folder, job, stale(folder, {}) if stale and known else set())
    plan = planner.plan
    fresh: list[int] = []
    taken: set[str] = set()
    elsewhere: dict[str, str] = {}
    for item in with_stats(items, known) if known else items:
        line = known.pop(item.key, None)
        if line is None:
            fresh.append(len(plan.to_do))
            plan.to_do.append(item)
            continue
        if line.place != place_of(paths.path_text(item.path)):
            elsewhere[item.key] = item.path
        if item.alias and line.output:
            taken.add(paths.fold(line.output))  # which it got before others came that are called nearly the same
        if again := planner.again(item, line):
            if not line.output:
                fresh.append(len(plan.to_do))
            plan.to_do.append(again)
    if elsewhere:
        require_same_images(folder, elsewhere)
    if known and fresh:
        plan.known_as = _known_as(known, (plan.to_do[place] for place in fresh))
        if stale and plan.known_as:
            planner.stale = stale(folder, plan.known_as)
        fresh = planner.rename(fresh, known)
    if known:
        taken.update(paths.fold(line.output) for line in known.values())
    if job.shard:
        fresh = planner.leave_to_others(job.shard, fresh, known)
        plan.numbers = _numbered(items, plan.to_do)
    planner.keep(folder, known)
    if taken:
        _tell_apart(plan.to_do, fresh, taken, formats.FORMATS[job.format].suffix)
    return plan


class _Planner:
    """Decides image by image, and counts."""

    def __init__(self, folder: Path, job: Job, stale: set[str]) -> None:
        self.plan = Plan()
        self._reader = formats.reader(job.format, folder)
        self._own_files = not formats.shares_files(job.format)
        self._job = job
        self.stale = stale

    def again(self, item: Item, line: Known) -> Item | None:
        """Return the image if it has to be done again; None if its line is current, or another shard's."""
        plan = self.plan
        if self._job.shard and not self._job.shard.has(item.key):
            plan.elsewhere += 1
            return None
        state = state_of(self._reader, item, line, hashed=self._job.hash_inputs)
        if state is State.STALE or (line.done and item.key in self.stale) or (self._job.retry_failed and not line.done):
            plan.again += line.done
            if not line.done:
                plan.retried.append(item)
            # What was called so stays called so.
            return replace(item, alias=line.output or item.alias) if self._own_files else item
        if line.done:
            plan.done += 1
            plan.kept_bytes += line.bytes
            plan.gone += state is State.GONE
        else:
            plan.failures.append(Outcome(item, stage=line.stage, error=line.error))
        return None

    def rename(self, fresh: list[int], known: dict[str, Known]) -> list[int]:
        """Give images that the manifest has under another key that key, and decide about them; returns the others."""
        plan = self.plan
        to_do: list[Item] = []
        left: list[int] = []
        new = set(fresh)
        for place, item in enumerate(plan.to_do):
            key = plan.known_as.get(item.key) if place in new else None
            line = known.pop(key, None) if key is not None else None
            again: Item | None = item
            if key is not None and line is not None:
                again = self.again(Item(key, item.path, stat=item.stat), line)
            elif place in new:
                left.append(len(to_do))
            if again:
                to_do.append(again)
        plan.to_do = to_do
        return left

    def keep(self, folder: Path, known: Mapping[str, Known]) -> None:
        """Count what the manifest has: of this call's images, and of those that it does not name."""
        plan = self.plan
        plan.others = len(known)
        others = sum(line.done for line in known.values())
        plan.kept_bytes += sum(line.bytes for line in known.values())
        plan.kept_done, plan.kept_failed = plan.done + others, len(plan.failures) + len(known) - others
        if known:
            plan.gone += count_gone(folder, {key for key, line in known.items() if line.done})

    def leave_to_others(self, shard: Shard, fresh: list[int], known: dict[str, Known]) -> list[int]:
        """Leave new images, and lines of images that this call does not name, to their shards; returns the others."""
        plan, new = self.plan, set(fresh)
        before = len(plan.to_do) + len(known)
        for key in [key for key in known if not shard.has(key)]:
            del known[key]
        kept = [place for place, item in enumerate(plan.to_do) if place not in new or shard.has(item.key)]
        plan.to_do = [plan.to_do[place] for place in kept]
        plan.elsewhere += before - len(plan.to_do) - len(known)
        return [now for now, place in enumerate(kept) if place in new]


def _numbered(items: Sequence[Item], chosen: Iterable[Item]) -> dict[str, int]:
    """Number some of the images of a call, by their paths."""
    wanted = {item.path for item in chosen}
    return {item.path: number for number, item in enumerate(items) if item.path in wanted}


def _known_as(known: Mapping[str, Known], fresh: Iterable[Item]) -> dict[str, str]:
    """Find images that are in the manifest under another key, by their paths."""
    places = {line.place: key for key, line in known.items()}
    found = {}
    for item in fresh:
        if key := places.get(place_of(paths.path_text(item.path))):
            found[item.key] = key
    return found


def _tell_apart(items: list[Item], fresh: Iterable[int], taken: set[str], suffix: str) -> None:
    """Give new images whose outputs could be taken for those of other images a name of their own."""
    for place in fresh:
        item = items[place]
        if not item.alias and paths.fold(layout.output_of(item.key, suffix)) in taken:
            items[place] = replace(item, alias=layout.output_of(item.key, suffix, apart=True))
