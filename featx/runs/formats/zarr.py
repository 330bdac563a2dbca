# Zarr: one array a level, in numbered shards, and the keys of its rows beside it.
"""A run as one store.

A row counts when its key is in its shard's file of keys. The arrays' files grow in place: rows are written only where
no row counts yet, and are safe on the disk before the index is written, which is before the file of keys is replaced,
and the shape in the metadata follows. So whatever is cut off, no row that counts has been touched, and `Store.settle`
puts right what is around them. Of several rows with one key, which a killed run leaves, the one that is in the manifest
counts: their sha256 tell.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from featx import files
from featx.errors import FeatxError
from featx.runs.formats import Array, Record, Stored
from featx.runs.formats.arrays import digest_of
from featx.runs.formats.zarr_reading import MAPPED, UNSOUND, Reader
from featx.runs.formats.zarr_store import (
    KEY,
    METADATA,
    ROWS,
    SHARD,
    STORE,
    Layout,
    Store,
    keys_of,
    layout_of,
    metadata_of,
    read_layout,
)
from featx.sharding import WHOLE, Shard
from featx.values import Field

__all__ = ["Reader", "Writer", "bytes_of"]


class Place(NamedTuple):
    """Where a row is: the number of its shard, and its place in it."""

    number: int
    place: int


class Row(NamedTuple):
    """What is to be there."""

    key: str
    arrays: Mapping[str, Array]


class Writer:
    """Gathers rows, and has the last shard grow by them."""

    largest = sys.maxsize
    group = ROWS
    seconds = 30.0  # what a killed run may have to do again
    room = 1 << 28

    def __init__(self, folder: Path, unfinished: Path, fields: Sequence[Field], shard: Shard = WHOLE) -> None:
        self._folder, self._unfinished, self._shard = folder, unfinished, shard
        self._store = Store(folder, _layout(folder, fields))
        self._next = Place(shard.remainder, 0)
        self._alone = threading.Lock()

    def write(self, record: Record) -> Stored:
        """Only hash."""
        arrays = {name: np.ascontiguousarray(record.arrays[name]) for name in self._store.layout.arrays}
        for name, spec in self._store.layout.arrays.items():
            if (arrays[name].shape, arrays[name].dtype) != (spec.shape, spec.dtype):  # it would shift all other rows
                raise ValueError(f"{name} of {record.item.key} is {arrays[name].dtype} {arrays[name].shape}")
        return Stored(self._store.layout.bytes, digest_of(arrays), Row(record.item.key, arrays))

    def commit(self, group: Sequence[Stored]) -> list[str]:
        """Append rows: to the last shard as far as it goes, then to new ones."""
        with self._alone:
            rows = dict(zip(self._places(), (stored.content for stored in group), strict=False))
            for number, places in groupby(rows, lambda place: place.number):
                added = {place.place: rows[place] for place in places}
                self._put(number, added)
                self._next = Place(number, max(added) + 1)
            if group:
                self._describe()
            return [STORE] * len(group)

    def abandon(self, kept: Sequence[Stored]) -> None:
        """Nothing is on the disk before it is committed."""

    def collect_garbage(self, done: Mapping[str, str], digests: Callable[[], Mapping[str, str]]) -> None:
        """Forget rows that are not in the manifest, and have the last ones fill the gaps.

        A shard of a run does so in shards of its own numbers, and leaves gaps: others may be about to be recorded.
        """
        with self._alone:
            if not done and (self._shard == WHOLE or self._is_another()):
                self._remove_all()
                self._next = Place(self._shard.remainder, 0)
                return
            with suppress(*UNSOUND):  # an older store, whose rows would be written over, is refused
                read_layout(Store.path_of_metadata(self._folder))
            if self._store.folder("").is_dir():
                live = self._live(done, digests)
                self._forget(live)
                if len(live) == len(done):  # then nothing needs what cannot be read
                    self._remove_unreadable()
                if self._shard == WHOLE and self._close_gaps(live):
                    self._forget(live)
                self._describe()
            self._next = self._end()

    def _places(self) -> Iterator[Place]:
        """Count on from the last row."""
        number, place = self._next
        while True:
            if place == self._store.layout.rows:
                number, place = number + self._shard.count, 0
            yield Place(number, place)
            place += 1

    def _put(self, number: int, rows: Mapping[int, Row]) -> None:
        """Write some rows of a shard, by their places, where no row counts yet; then they do."""
        keys = self._store.keys(number) if self._store.path(KEY, number).exists() else []
        keys += [""] * (max(rows) + 1 - len(keys))
        for place, row in rows.items():
            keys[place] = row.key
        try:
            self._store.put(number, {place: row.arrays for place, row in rows.items()}, self._unfinished)
            self._store.settle(number, len(keys))
            self._write_keys(number, keys)
        except BaseException:
            with suppress(*UNSOUND):  # the earlier failure is reported, and the next run does it
                self._give_back(number)
            raise

    def _give_back(self, number: int) -> None:
        """Free the room of rows that do not count."""
        if self._store.path(KEY, number).exists():
            self._store.settle(number, len(self._store.keys(number)))
        else:
            self._remove(number)

    def _write_keys(self, number: int, keys: Sequence[str]) -> None:
        files.make_folders(self._store.folder(KEY))
        data = keys_of(keys, self._store.layout.rows)
        files.write_atomically(self._store.path(KEY, number), [data], self._unfinished / KEY)

    def _describe(self) -> None:
        """Have the metadata count the rows; again if another shard of the run has done so meanwhile."""
        while stale := self._stale():
            for path, data in stale.items():
                files.make_folders(path.parent)
                files.write_atomically(path, [data], self._unfinished / METADATA)

    def _stale(self) -> dict[Path, bytes]:
        """Return the metadata that are to be written."""
        last = max(self._store.numbers(), default=-1)
        rows = self._store.layout.rows * max(last, 0) + len(self._keys(last))
        wanted = metadata_of(self._store.layout, rows)
        paths = {self._store.folder(name) / METADATA: data for name, data in wanted.items()}
        return {path: data for path, data in paths.items() if not path.exists() or path.read_bytes() != data}

    def _keys(self, number: int) -> list[str]:
        """Return the keys of a shard; none where they cannot be read."""
        try:
            return self._store.keys(number)
        except UNSOUND:
            return []

    def _live(self, done: Mapping[str, str], digests: Callable[[], Mapping[str, str]]) -> dict[Place, str]:
        """Find the rows that the manifest has, by their places in order, one for each key."""
        numbers = self._store.numbers()
        found = {Place(number, place): key for number in numbers for place, key in enumerate(self._keys(number))}
        found = {place: key for place, key in found.items() if key in done}
        repeated = {key for key, count in Counter(found.values()).items() if count > 1}
        wanted = digests() if repeated else {}
        live: dict[str, Place] = {}
        for place, key in found.items():
            if key not in live and (key not in repeated or self._digest(place) == wanted.get(key)):
                live[key] = place
        return {place: key for key, place in live.items()}

    def _digest(self, place: Place) -> str:
        try:
            return digest_of(
                {name: self._store.rows(name, place.number)[place.place] for name in self._store.layout.arrays}
            )
        except (*UNSOUND, IndexError):
            return ""

    def _forget(self, live: Mapping[Place, str]) -> None:
        """Take the keys of all other rows out of the shards, then cut the space they took; remove empty shards."""
        for number in self._own(KEY):
            keys = self._keys(number)
            left = [live.get(Place(number, place), "") for place in range(len(keys))]
            if keys and not any(left):
                self._remove(number)
            elif left != keys:
                self._write_keys(number, left)
            if any(left):
                self._store.settle(number, max(place for place, key in enumerate(left, 1) if key))

    def _close_gaps(self, live: dict[Place, str]) -> bool:
        """Copy the last rows into the gaps between the others, unless something there is damaged."""
        wanted = [Place(*divmod(row, self._store.layout.rows)) for row in range(len(live))]
        gaps = [place for place in wanted if place not in live]
        moves = dict(zip(gaps, sorted(live)[len(live) - len(gaps) :], strict=True))
        if not moves or not all(self._is_sound(place.number) for place in {*moves, *moves.values()}):
            return False
        rows = lru_cache(MAPPED)(self._store.rows)
        for number, places in groupby(moves, lambda place: place.number):
            copied = {}
            for gap in places:
                there = moves[gap]
                arrays = {name: rows(name, there.number)[there.place] for name in self._store.layout.arrays}
                copied[gap.place] = Row(live[there], arrays)
            self._put(number, copied)
        for gap, there in moves.items():
            live[gap] = live.pop(there)
        return True

    def _is_sound(self, number: int) -> bool:
        """Whether a shard has all its rows, or there is none with this number."""
        if not any(number in self._store.numbers(name) for name in (KEY, *self._store.layout.arrays)):
            return True
        try:
            count = len(self._store.keys(number))
            return all(count <= len(self._store.rows(name, number)) for name in self._store.layout.arrays)
        except UNSOUND:
            return False

    def _end(self) -> Place:
        """Find the place for the next row: after the last one, or in a new shard if the last is damaged."""
        last = max((number for name in (KEY, *self._store.layout.arrays) for number in self._own(name)), default=-1)
        if last < 0:
            return Place(self._shard.remainder, 0)
        sound = self._is_sound(last)
        return Place(last, len(self._store.keys(last))) if sound else Place(last + self._shard.count, 0)

    def _is_another(self) -> bool:
        """Whether a store is there that is laid out otherwise; if not, other shards may be about to record its rows."""
        try:
            found, _ = read_layout(Store.path_of_metadata(self._folder))
        except FileNotFoundError:
            return False
        except (*UNSOUND, FeatxError):
            return True
        return found != self._store.layout

    def _own(self, name: str) -> list[int]:
        """Return the numbers of an array's shards that are this writer's."""
        return [number for number in self._store.numbers(name) if self._shard.has_number(number)]

    def _remove_unreadable(self) -> None:
        """Remove shards whose keys are missing or damaged."""
        for number in {number for name in (KEY, *self._store.layout.arrays) for number in self._own(name)}:
            if not self._keys(number):
                self._remove(number)

    def _remove(self, number: int) -> None:
        for name in (KEY, *self._store.layout.arrays):
            files.remove(self._store.path(name, number))

    def _remove_all(self) -> None:
        """Remove the store, with whatever arrays, but nothing that is not one's."""
        whole = self._store.folder("")
        if not whole.is_dir():
            return
        files.remove(whole / METADATA)
        for folder in [path for path in whole.iterdir() if path.is_dir() and not path.is_symlink()]:
            for path in folder.iterdir():
                if path.name == METADATA or SHARD.fullmatch(path.name):
                    files.remove(path)
            with suppress(OSError):  # there is something else in it
                folder.rmdir()
        with suppress(OSError):
            whole.rmdir()


def bytes_of(fields: Sequence[Field]) -> int:
    """Return the bytes of a row; indices and the end of the last chunk do not count."""
    return sum(field.bytes for field in fields)


def _layout(folder: Path, fields: Sequence[Field]) -> Layout:
    """Take the layout of the store that is there, if it holds these arrays, or a new one."""
    made = layout_of(fields)
    try:
        found, _ = read_layout(Store.path_of_metadata(folder))
    except (*UNSOUND, FeatxError):
        return made
    arrays = ([(name, spec.shape, spec.dtype) for name, spec in each.arrays.items()] for each in (made, found))
    return made if next(arrays) != next(arrays) else found
