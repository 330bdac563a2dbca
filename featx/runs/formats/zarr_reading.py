# Reading Zarr: the rows of a store, found by their keys and mapped.
"""The reader of Zarr stores."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from featx.errors import FeatxError, OutputError
from featx.runs.formats import Array
from featx.runs.formats.arrays import BLOCK, digest_of
from featx.runs.formats.zarr_store import KEY, METADATA, SHARD, STORE, Store, read_layout
from featx.runs.manifest import Done
from featx.values import EMBEDDING

# Shards' arrays that are kept mapped.
MAPPED = 256

# What reading a damaged file raises.
UNSOUND = (OSError, ValueError, OutputError)


class Reader:
    """Looks rows up by their keys, and maps them."""

    def __init__(self, folder: Path, digest: Callable[[str], str]) -> None:
        self._folder, self._digest = folder, digest
        self._opened: _Index | None = None

    def holds(self, key: str, output: str, size: int) -> bool:
        """Whether there is a row of it, of that length, in every array."""
        try:
            store = self._open().store
            self.read(key, output)
        except (*UNSOUND, KeyError):
            return False
        return store.layout.bytes == size

    def read(self, key: str, output: str, names: Collection[str] | None = None) -> Mapping[str, Array]:
        """Map the arrays of a row."""
        if output != STORE:
            raise KeyError(output)
        index = self._open()
        number, place = divmod(self._row(key), index.store.layout.rows)
        rows = {name: index.rows(name, number) for name in (index.store.layout.arrays if names is None else names)}
        if any(place >= len(each) for each in rows.values()):
            raise ValueError(f"shard {number} of {STORE} has lost rows")
        return {name: each[place] for name, each in rows.items()}

    def fault(self, line: Done) -> str:
        """Compare a row's sha256."""
        if line.key not in self._open().places:
            return "missing"
        return "" if digest_of(self.read(line.key, line.output)) == line.sha256 else "sha256 differs"

    def files(self, outputs: Iterable[str]) -> set[str]:
        """All of the store; what looks like its files where it is not described, or no longer."""
        found = {f"{STORE}/{METADATA}"}
        try:
            store = self._open().store
        except (*UNSOUND, FeatxError):
            paths = (self._folder / STORE).glob("*/*")
            ours = (path for path in paths if path.name == METADATA or SHARD.fullmatch(path.name))
            return found | {path.relative_to(self._folder).as_posix() for path in ours}
        for name in (KEY, *store.layout.arrays):
            names = {METADATA, *(store.path(name, number).name for number in store.numbers(name))}
            found |= {f"{STORE}/{name}/{each}" for each in names}
        return found

    def strays(self, done: Mapping[str, str]) -> dict[str, list[str]]:
        """Look through the keys."""
        try:
            index = self._open()
        except UNSOUND:  # every one of its rows is damaged, which is reported for each
            return {}
        keys = [key for key in index.places if key not in done] + list(index.earlier)
        return {STORE: keys} if keys else {}

    def vectors(self, places: Iterable[tuple[str, str]]) -> Iterator[tuple[list[str], Array]]:
        """Map blocks of rows, in the array's order."""
        found = list(places)
        if elsewhere := {output for _, output in found} - {STORE}:
            raise KeyError(*elsewhere)
        order = sorted((self._row(key), key) for key, _ in found)
        if not order:
            return
        index, rows = self._open(), self._open().store.layout.rows
        for number, members in groupby(order, lambda member: member[0] // rows):
            vectors = index.rows(EMBEDDING, number)
            shard = list(members)
            for start in range(0, len(shard), BLOCK):
                block = shard[start : start + BLOCK]
                yield [key for _, key in block], vectors[[row % rows for row, _ in block]]

    def _open(self) -> _Index:
        if self._opened is None:
            layout, _ = read_layout(Store.path_of_metadata(self._folder))
            store = Store(self._folder, layout)
            places: dict[str, int] = {}
            earlier: dict[str, list[int]] = {}
            for number in store.numbers():
                with suppress(*UNSOUND):
                    for place, key in enumerate(store.keys(number)):
                        if key in places:
                            earlier.setdefault(key, []).append(places[key])
                        if key:
                            places[key] = number * layout.rows + place
            self._opened = _Index(store, places, earlier, lru_cache(MAPPED)(store.rows))
        return self._opened

    def _row(self, key: str) -> int:
        """Return the row of a key; of several, which a killed run leaves, the one that is in the manifest."""
        index = self._open()
        last = index.places[key]
        for row in index.earlier.get(key, ()):
            number, place = divmod(row, index.store.layout.rows)
            with suppress(*UNSOUND, IndexError):
                arrays = {name: index.rows(name, number)[place] for name in index.store.layout.arrays}
                if digest_of(arrays) == self._digest(key):
                    return row
        return last


class _Index(NamedTuple):
    """What a reader keeps: the store, the last row of each key, earlier ones, and the arrays of shards."""

    store: Store
    places: dict[str, int]
    earlier: dict[str, list[int]]
    rows: Callable[[str, int], Array]
