# Shards: many processes that add to one folder at once, each holding a part of its manifest.
"""Holding a part of a run's folder.

Three locks, all of them the kernel's where it has any. A shard holds the manifest of its part as long as it runs. The
manifest of the whole run is held by a call without ``--shard``, and by a shard only while it starts, so that neither
begins while the other is there. And shards take turns: one at a time starts, or changes what all of them share.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from featx import files
from featx.errors import BusyError, OutputError
from featx.runs import manifest, parts
from featx.runs.flock import in_turn, is_locked, open_locked, require_no_shards
from featx.runs.folding import clear_up, fold, recount, remove_part
from featx.runs.layout import LEASE, MANIFEST, SUMMARY, UNFINISHED
from featx.runs.lease import Lease
from featx.runs.lock import LockedFolder, require_usable
from featx.runs.summary import SHARDS, read_summary
from featx.sharding import Shard

# What the summary counts of every shard.
COUNTED = ("done", "failed", "bytes", "seconds")


class LockedPart(LockedFolder):
    """A part of a run's folder that this process alone may change, while others change theirs."""

    def __init__(self, folder: Path, shard: Shard, handle: int, lease: Lease | None, turn: ExitStack) -> None:
        super().__init__(folder, handle, lease, parts.home_of(folder, shard))
        self._shard, self._turn = shard, turn
        self._own: dict[str, int] | None = None
        self._spent = 0.0

    def let_others_start(self) -> None:
        """End the turn, unless this is the first shard to come: then when it has saved what the run is."""
        others = (part for other, part in parts.found(self._folder).items() if other != self._shard)
        self.binding = manifest.has_lines(self._folder) or any(map(is_locked, others))
        if self.binding:
            self._turn.close()

    def save(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Enter this shard into the summary, after its manifest is safe, and return that of the run."""
        self._require_lease()
        files.synchronise(self._home / MANIFEST)
        first, now = self._own is None, summary
        own = self._own if self._own is not None else manifest.counted(self._folder, self._shard)
        with in_turn(self._folder) if self.binding else self._turn:
            there = read_summary(self._folder)
            shards = self._table(there)
            name = str(self._shard.number)
            if first:
                self._spent = shards["each"].get(name, {}).get("seconds", 0.0)
            mine = {fact: now["counts"][fact] - own[fact] for fact in ("done", "failed")}
            mine |= {"bytes": now["bytes"] - own["bytes"], "seconds": round(self._spent + now["call"]["seconds"], 3)}
            shards["each"][name] = {"state": now["state"], **mine}
            total = now["counts"]["total"] if first or there is None else there["counts"]["total"]
            summary = _of_all(now, shards, total)
            summary["call"] = {**now["call"], "shard": str(self._shard)}
            text = json.dumps(summary, indent=2) + "\n"
            files.write_atomically(self._folder / SUMMARY, [text.encode()], self.unfinished / SUMMARY)
        self._own, self.binding = own, True
        return summary

    def end(self) -> None:
        """Unlock the part; one that came to nothing is removed."""
        with suppress(OSError, OutputError):
            if not (self._begun or os.fstat(self._handle).st_size or self.unfinished.exists()):
                with in_turn(self._folder) if self.binding else nullcontext():
                    remove_part(self._home)
                    clear_up(self._folder)
        super().end()
        self._turn.close()

    def _fold(self) -> None:
        """Other parts are others' matter."""

    def _table(self, there: dict[str, Any] | None) -> dict[str, Any]:
        """Return what the summary has of the shards: what was there before them, and what each of them added."""
        if there and SHARDS in there:
            table: dict[str, Any] = there[SHARDS]
            return table
        seconds = there["seconds"] if there else 0.0
        return {"of": self._shard.count, "before": {**manifest.counted(self._folder), "seconds": seconds}, "each": {}}


def _of_all(now: dict[str, Any], shards: dict[str, Any], total: int) -> dict[str, Any]:
    """Return the summary of a run from that of one of its shards and the table of all."""
    each = shards["each"].values()
    done, failed, size, seconds = (shards["before"][fact] + sum(shard[fact] for shard in each) for fact in COUNTED)
    total = max(total, done + failed)
    states = {shard["state"] for shard in each}
    complete = states == {"done"} and done + failed == total
    return {
        **now,
        "state": "running" if "running" in states else "done" if complete else "stopped",
        "counts": {"done": done, "failed": failed, "total": total},
        "bytes": size,
        "seconds": round(seconds, 3),
        SHARDS: {**shards, "each": dict(sorted(shards["each"].items(), key=lambda pair: int(pair[0])))},
    }


@contextmanager
def exclusive(folder: Path, shard: Shard) -> Iterator[LockedPart]:
    """Lock a shard's part of a folder, which is made if need be; those of another number of shards are merged before.

    Raises
    ------
    OutputError
        If the folder cannot be written, or holds something that is not a run.
    BusyError
        If this shard is running already, or somebody else has locked the folder.
    """
    require_usable(folder)
    with ExitStack() as turn:
        try:
            turn.enter_context(in_turn(folder))
            handle, lease = _started(folder, shard)
        except OSError as error:
            raise OutputError(
                f"{folder} cannot be written: {error.strerror}", "Choose another folder with --output"
            ) from error
        held = LockedPart(folder, shard, handle, lease, turn)
        try:
            held.let_others_start()
            yield held
        finally:
            held.end()


def _started(folder: Path, shard: Shard) -> tuple[int, Lease | None]:
    """Lock a part, while the whole folder is locked."""
    whole, locked = open_locked(folder / MANIFEST, os.O_RDWR | os.O_APPEND | os.O_CREAT, fcntl.LOCK_EX)
    lease = None
    try:
        lease = None if locked else Lease(folder / LEASE)
        there = parts.found(folder)
        others = {other.count for other in there} - {shard.count}
        if others or parts.is_merging(folder):
            require_no_shards(folder, f"so it cannot be divided into {shard.count}")
            merged = fold(folder, locked=locked)
            os.close(whole)
            whole = merged
        elif not there:
            recount(folder)
        return _part(folder, shard)
    finally:
        os.close(whole)
        if lease:
            lease.end()


def _part(folder: Path, shard: Shard) -> tuple[int, Lease | None]:
    """Make and lock a part."""
    home = parts.home_of(folder, shard)
    for place in (home, home / UNFINISHED):
        if place.is_symlink():  # which featx does not make, and never writes through
            place.unlink()
    files.make_folders(home)
    try:
        handle, locked = open_locked(home / MANIFEST, os.O_RDWR | os.O_APPEND | os.O_CREAT, fcntl.LOCK_EX)
        try:
            return handle, None if locked else Lease(home / LEASE)
        except BaseException:
            os.close(handle)
            raise
    except BusyError as error:
        raise BusyError(f"Shard {shard} of {folder} is running already", "Wait for it to end") from error
