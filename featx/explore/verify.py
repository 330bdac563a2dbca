# verify: checks every output of a run against its manifest, recomputes samples, and forgets what is damaged.
"""``featx verify`` as a function."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs

from featx import files
from featx.command_options import VerifyOptions
from featx.dtypes import DTYPES, ROUNDING
from featx.engine import resources
from featx.engine.events import Checked
from featx.errors import ROOM, OutputError, StuckError
from featx.explore.leftovers import UNSOUND, fault_of_arrays, leftovers, parts_of
from featx.images.locators import in_order, stat_of
from featx.options import Limits
from featx.paths import to_path
from featx.runs import formats, lock, manifest, remote
from featx.runs.basis import fault_of
from featx.runs.formats import Array
from featx.runs.known import is_same
from featx.runs.layout import UNFINISHED
from featx.runs.mirror import mirror_of
from featx.runs.reading import Run, open_run
from featx.runs.summary import require_summary
from featx.runs.suspects import read_suspects, save_suspects
from featx.values import Item
from featx.version import library_versions

# None; images that were done before are within those of the run.
LIMITS = Limits(max_pixels=sys.maxsize, max_bytes=sys.maxsize)

# What recomputed arrays are compared in: a format that holds every type.
SCRATCH = "safetensors"

# Outputs submitted to the threads at once.
GROUP = 256


@dataclass(slots=True)
class Recomputed:
    """The result of recomputing outputs.

    Attributes
    ----------
    images : int
        Number of images recomputed.
    skipped : int
        Number of images skipped because they have changed or are gone.
    failed : list of str
        Keys of unchanged images that now fail.
    deviation : float
        The largest difference, relative to the largest value in its level.
    where : str
        Image and level where it occurs; empty if everything is equal.
    tolerance : float
        The largest deviation that counts as equal.
    versions : list of str
        Versions that differ from those in the recipe.
    """

    images: int = 0
    skipped: int = 0
    failed: list[str] = field(default_factory=list)
    deviation: float = 0.0
    where: str = ""
    tolerance: float = 0.0
    versions: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Whether every image was reproduced; not if all of them had to be skipped."""
        compared = self.images or not self.skipped
        return bool(compared) and self.deviation <= self.tolerance and not self.failed


@dataclass(slots=True)
class Verified:
    """The result of a check.

    Attributes
    ----------
    folder : Path or str
        The run's, or its URL.
    checked : int
        Number of outputs in the manifest.
    missing : list of str
        Keys without their output.
    damaged : dict of str to str
        Keys whose output differs from what was written, and why.
    to_do : int
        Images of the last call that were not processed.
    failed : int
        Images without features because they failed.
    uncommitted : list of str
        Outputs, and rows of tables, that a killed run wrote but could not record in the manifest; the next one makes
        them again.
    foreign : list of str
        Files that do not belong to the run.
    unreadable : list of str
        Damaged lines of the manifest, and what is wrong with them.
    unfinished : int
        Temporary files of a killed run; the next one removes them.
    basis : str
        What is wrong with the components that its maps are projected on; empty if nothing is.
    repaired : bool
        Whether what is missing or damaged was forgotten.
    recomputed : Recomputed or None
        If it was requested.
    """

    folder: Path | str
    checked: int = 0
    missing: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    to_do: int = 0
    failed: int = 0
    uncommitted: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    unfinished: int = 0
    basis: str = ""
    repaired: bool = False
    recomputed: Recomputed | None = None

    @property
    def sound(self) -> bool:
        """Whether every output is as written, and was reproduced if recomputed."""
        same = self.recomputed is None or self.recomputed.same
        return same and not (self.missing or self.damaged or self.unreadable or self.basis)

    @property
    def complete(self) -> bool:
        """Whether every image of the last call was processed."""
        return not self.to_do


def verify(
    folder: str | os.PathLike[str],
    *,
    recompute: int = 0,
    repair: bool = False,
    listener: Callable[[Checked], None] = lambda _: None,
) -> Verified:
    """Check every output of a run: sha256, and arrays, shapes, types and finite numbers.

    Parameters
    ----------
    folder : path
        The run's.
    recompute : int
        Number of images, chosen at random, to extract again with the run's recipe.
    repair : bool
        Remove missing or damaged outputs from the manifest; the next ``extract`` makes them again.
    listener : callable
        Called with the progress.

    Raises
    ------
    FeatxError
        If the folder is not a run, another run holds it, or the recipe can no longer be followed.
    """
    recompute = VerifyOptions(recompute=recompute).recompute
    require_summary(folder)  # before looking for its lock
    with remote.at(folder, changing=repair) as place:
        return _verify(place, recompute, repair=repair, listener=listener)


def _verify(folder: Path, recompute: int, *, repair: bool, listener: Callable[[Checked], None]) -> Verified:
    holding: AbstractContextManager[Any] = remote.exclusive(folder, make=False) if repair else remote.shared(folder)
    with holding as held:
        run = open_run(folder, raw=True)
        mirror = mirror_of(folder)
        verified = Verified(mirror.store.url if mirror else folder, failed=len(run.failed))
        verified.unreadable = manifest.unreadable_lines(folder)
        verified.to_do = max(0, run.summary["counts"]["total"] - len(run) - len(run.failed))
        for key, fault in _faults(run, listener):
            verified.checked += 1
            if fault == "missing":
                verified.missing.append(key)
            elif fault:
                verified.damaged[key] = fault
        if sha256 := run.summary["recipe"]["basis"]:
            verified.basis = fault_of(folder, sha256)
        verified.uncommitted, verified.foreign, verified.unfinished = leftovers(run)
        if recompute:
            verified.recomputed = _recompute(run, recompute, {*verified.missing, *verified.damaged})
        if repair:
            _repair(run, held, verified)
    return verified


def _faults(run: Run, listener: Callable[[Checked], None]) -> Iterator[tuple[str, str]]:
    """Check all outputs in parallel; empty where nothing is wrong."""
    keys, done = iter(sorted(run, key=run.output)), 0  # outputs that share a file are consecutive
    with ThreadPoolExecutor(resources.cores()) as pool:
        while group := list(islice(keys, GROUP)):
            for key, fault in zip(group, pool.map(lambda key: _fault(run, key), group), strict=True):
                done += 1
                listener(Checked(done, len(run)))
                yield key, fault


def _fault(run: Run, key: str) -> str:
    """Say what is wrong with an output."""
    try:
        line = run.line(key)
        return run.reader.fault(line) or fault_of_arrays(run.reader.read(key, line.output), run.fields)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except OutputError as error:  # a link points outside the folder
        return error.message
    except UNSOUND as error:
        return f"is not an output, or its line is damaged: {type(error).__name__} {error}"


def _repair(run: Run, held: lock.LockedFolder, verified: Verified) -> None:
    """Forget what is missing or damaged, and say in the summary that the run is not complete."""
    forgotten = {*verified.missing, *verified.damaged}
    save_suspects(held.unfinished, read_suspects(held.unfinished))
    held.begin()
    if forgotten or verified.unreadable:
        try:
            summary = require_summary(run.folder)  # without the shards, whose parts have been merged
            counts = {**summary["counts"], "done": len(run) - len(forgotten)}
            held.save({**summary, "state": "stopped", "counts": counts})
            held.drop(forgotten)
        except OSError as error:
            raise OutputError(f"{run.name} cannot be written: {error.strerror}", ROOM) from error
    verified.repaired = True


def _recompute(run: Run, count: int, without: set[str]) -> Recomputed:
    """Extract some images again, into a temporary folder, and compare."""
    # torch takes seconds to load, and nothing else here needs it.
    from featx.engine import isolation, pipeline
    from featx.engine.again import set_up_again
    from featx.engine.boxes import of_outputs

    recipe = run.summary["recipe"]
    tolerance = max(ROUNDING[recipe["precision"]], DTYPES[recipe["dtype"]].tolerance)
    result = Recomputed(tolerance=tolerance, versions=_other_versions(run.summary))
    keys = [key for key in run if key not in without]
    chosen = random.sample(keys, min(count, len(keys)))
    found = (_unchanged(run, key) for key in chosen)
    items = [structs.replace(item, alias=f"{number}") for number, item in enumerate(found) if item]
    result.skipped = len(chosen) - len(items)
    if not items:
        return result
    boxes = of_outputs({item.key: run[item.key] for item in items}, recipe["box_size"]) if recipe["boxes"] else None
    again = set_up_again(run.folder, run.summary, recipe["device"], len(items), boxes)
    with files.temporary_folder() as scratch, resources.machine(again.devices, again.workers):
        (scratch / UNFINISHED).mkdir()
        reader = isolation.Reader(again.pyramid.preprocessor, LIMITS, scratch / UNFINISHED, tiling=again.tiling)
        writer = formats.writer(SCRATCH, scratch, scratch / UNFINISHED, again.computers[0].fields)
        tiles = again.tiles(reader, LIMITS, writer, scratch / UNFINISHED)
        made = formats.reader(SCRATCH, scratch)
        try:
            for outcome in chain.from_iterable(
                pipeline.run(
                    again.computers, in_order(items), writer, again.workers, reader, room=again.room, tiles=tiles
                )
            ):
                key = outcome.item.key
                if not outcome.done:
                    result.failed.append(key)
                    continue
                result.images += 1
                _compare(run[key], made.read(key, outcome.output), key, result)
                (scratch / outcome.output).unlink()
        except StuckError as stuck:
            result.failed.append(stuck.item.key)
        finally:
            reader.close()
    return result


def _unchanged(run: Run, key: str) -> Item | None:
    """The image of an output, if it is still the one that was read."""
    line = run.line(key)
    path, then = to_path(line.path), line.input
    now = stat_of(path)
    return Item(key, path, stat=now) if now and then and is_same(now, then) else None


def _compare(then: Mapping[str, Array], now: Mapping[str, Array], key: str, result: Recomputed) -> None:
    for name, values in then.items():
        if values.dtype.kind == "U":
            continue
        largest, apart = float(np.finfo(np.float32).tiny), 0.0
        for old, new in zip(parts_of(values), parts_of(now[name]), strict=True):
            largest = max(largest, float(np.abs(old.astype(np.float64)).max(initial=0)))
            apart = max(apart, float(np.abs(new.astype(np.float64) - old).max(initial=0)))
        deviation = apart / largest
        if deviation > result.deviation:
            result.deviation, result.where = deviation, f"{name} of {key}"


def _other_versions(summary: dict[str, Any]) -> list[str]:
    then, now = summary["recipe"]["versions"], library_versions(summary["source"], summary["recipe"]["backend"])
    return [f"{name} {then.get(name)} -> {now[name]}" for name in now if now[name] != then.get(name)]
