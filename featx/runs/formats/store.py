# Formats behind URLs: what any of them writes is uploaded as soon as it is complete, and fetched when it is read.
"""A writer and a reader that put objects beside those of the formats.

Neither keeps more files on this machine than those under way.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featx import files
from featx.runs import manifest
from featx.runs.manifest import Done
from featx.runs.mirror import Mirror
from featx.stores import threads
from featx.values import EMBEDDING

if TYPE_CHECKING:
    from featx.runs.formats import Array, Record, Stored
    from featx.runs.formats import Reader as AnyReader
    from featx.runs.formats import Writer as AnyWriter

# Fetched files that are kept, beside those that are being read.
KEPT = 4

# Vectors in files of their own that are fetched together.
BLOCK = 256


class Writer:
    """Has a format write files, uploads them, and removes them here.

    Parameters
    ----------
    inner : Writer
        The format's, which writes into the folder.
    mirror : Mirror
        The run's.
    shared : str
        The suffix of files that images share; empty for a format with files of their own. Those are uploaded while
        others are being computed.
    """

    def __init__(self, inner: AnyWriter, mirror: Mirror, shared: str) -> None:
        self._inner, self._mirror, self._shared = inner, mirror, shared
        self._folder, self._store, self._threads = mirror.folder, mirror.store, mirror.threads
        self.largest, self.group, self.seconds, self.room = inner.largest, inner.group, inner.seconds, inner.room

    def write(self, record: Record) -> Stored:
        """Write a file, and begin to upload it."""
        stored = self._inner.write(record)
        begun = None if self._shared else self._threads.submit(self._put, [stored])
        return replace(stored, content=(stored, begun))

    def commit(self, group: Sequence[Stored]) -> list[str]:
        """Wait until files are in the store."""
        begun: list[tuple[Stored, Future[list[str]]]] = [stored.content for stored in group]
        if self._shared:
            return self._put([stored for stored, _ in begun])
        return [name for _, future in begun for name in future.result()]

    def abandon(self, kept: Sequence[Stored]) -> None:
        """Leave the rest to the folder's end."""
        self._inner.abandon([stored.content[0] for stored in kept])

    def collect_garbage(self, done: Mapping[str, str], digests: Callable[[], Mapping[str, str]]) -> None:
        """Remove shared files that are not in the manifest, and rows of images that were done again."""
        if not self._shared:
            return
        needed = set(done.values())
        for name in self._store.sizes():
            if name.endswith(self._shared) and name not in needed:
                self._store.remove(name)
        for name in _outdated(self._folder, done) & needed:
            path = self._folder / name
            if self._store.fetch(name, path):
                before = files.sha256_of(path)
                self._inner.collect_garbage(done, digests)
                if files.sha256_of(path) != before:
                    self._store.upload(path, name)
                files.remove(path)
        self._inner.collect_garbage(done, digests)  # which finds the number of its next file

    def _put(self, group: Sequence[Stored]) -> list[str]:
        names = self._inner.commit(group)
        for name in dict.fromkeys(names):
            self._mirror.check()
            self._store.upload(self._folder / name, name)
            files.remove(self._folder / name)
        return names


class Reader:
    """Fetches outputs, and has their format read them: arrays that are mapped outlive the files.

    Parameters
    ----------
    made : callable
        Makes the format's reader of a folder.
    mirror : Mirror
        The run's.
    shared : str
        See `Writer`.
    """

    def __init__(self, made: Callable[[Path], AnyReader], mirror: Mirror, shared: str) -> None:
        self._made, self._mirror, self._store, self._shared = made, mirror.folder, mirror.store, shared
        self._alone, self._process = threading.Lock(), 0
        self._sizes: dict[str, dict[str, int]] = {}

    def holds(self, key: str, output: str, size: int) -> bool:
        """Whether the object is there, in full; of one that images share, it is enough that it is there."""
        folder, _, name = output.rpartition("/")
        if folder not in self._sizes:
            self._sizes[folder] = self._store.sizes(folder)
        there = self._sizes[folder].get(name, -1)
        return there >= 0 if self._shared else there == size

    def read(self, key: str, output: str, names: Collection[str] | None = None) -> Mapping[str, Array]:
        """Fetch an image's arrays."""
        with self._here(output) as inner:
            return inner.read(key, output, names)

    def fault(self, line: Done) -> str:
        """Say what is wrong with an output."""
        with self._here(line.output) as inner:
            return inner.fault(line)

    def files(self, outputs: Iterable[str]) -> set[str]:
        """All objects that belong to these outputs."""
        return set(outputs)

    def strays(self, done: Mapping[str, str]) -> dict[str, list[str]]:
        """Look through shared files, one after the other."""
        found: dict[str, list[str]] = {}
        for name in sorted(self._store.sizes()) if self._shared else ():
            if name.endswith(self._shared):
                with self._here(name) as inner:
                    found |= inner.strays(done)
        return found

    def vectors(self, places: Iterable[tuple[str, str]]) -> Iterator[tuple[list[str], Array]]:
        """Fetch embeddings, those in files of their own many at a time."""
        if self._shared:
            for output, group in groupby(sorted(places, key=lambda place: place[1]), key=lambda place: place[1]):
                with self._here(output) as inner:
                    yield from inner.vectors(list(group))
            return
        rest = iter(places)
        with threads() as pool:
            while block := list(islice(rest, BLOCK)):
                yield [key for key, _ in block], np.stack(list(pool.map(self._vector, block)))

    def _vector(self, place: tuple[str, str]) -> Array:
        return np.array(self.read(*place, [EMBEDDING])[EMBEDDING])

    @contextmanager
    def _here(self, output: str) -> Iterator[AnyReader]:
        """Have an output on this machine while it is being opened."""
        with self._alone:
            self._settle()
            folder, inner, using = self._folder, self._inner, self._using
            using[output] += 1
        path = folder / output
        try:
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f".{threading.get_native_id()}.tmp")
                if self._store.fetch(output, temporary):
                    temporary.replace(path)
            yield inner
        finally:
            with self._alone:
                using[output] -= 1
                idle = [name for name, count in using.items() if not count]
                for name in idle[:-KEPT]:
                    files.remove(folder / name)
                    del using[name]

    def _settle(self) -> None:
        """Give every process a folder of its own: a fork would remove what its parent is opening."""
        if self._process != os.getpid():
            self._process, self._using = os.getpid(), Counter[str]()
            self._folder = self._mirror / f".fetched-{self._process}"
            self._inner: Any = self._made(self._folder)


def _outdated(folder: Path, done: Mapping[str, str]) -> set[str]:
    """Find the files with rows of images that were done again, or have failed since."""
    lines = (line for line in manifest.lines(folder) if isinstance(line, Done))
    return {line.output for line in lines if done.get(line.key) != line.output}
