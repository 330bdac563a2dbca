# The parts of a manifest: where a run's lines are while shards write it, and how all of them are read as one.
"""The one place that knows that a manifest may have parts.

The lines of a run are those of ``manifest.jsonl`` and after them those of its parts, in any order: every part holds
the keys of one shard alone, and all parts are of one number of shards. Nothing is added to ``manifest.jsonl`` as long
as there are parts, so that for every key the last line counts.
"""

from __future__ import annotations

import os
import re
import stat
from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from featx.errors import OutputError
from featx.runs.layout import LEASE, MANIFEST, PARTS
from featx.sharding import Shard

# In the folder of parts: whose turn it is to change what all share, and that the parts are being merged.
TURN, MERGING = "turn", "merging"

# Bytes that are read at a time, and lines.
BLOCK, GROUP = 1 << 18, 1 << 16

_NAME = re.compile(r"([0-9]+)-of-([0-9]+)")


def home_of(folder: Path, shard: Shard | None) -> Path:
    """Return the folder of a shard's manifest; of a run that is not divided, the run's."""
    return folder / PARTS / shard.name if shard else folder


def found(folder: Path) -> dict[Shard, Path]:
    """Find the parts of a run, in the order of their names: the folder of each, which has a manifest."""
    place = folder / PARTS
    if place.is_symlink():  # which featx does not make
        return {}
    try:
        names = sorted(os.listdir(place))  # noqa: PTH208 - names
    except (FileNotFoundError, NotADirectoryError):
        return {}
    parts = {}
    for name in names:
        match = _NAME.fullmatch(name)
        shard = Shard(int(match[1]), int(match[2])) if match else None
        if shard and shard.name == name and _holds_manifest(place / name):
            parts[shard] = place / name
    return parts


def manifests(folder: Path) -> list[Path]:
    """Return the files that hold a run's lines, in the order in which they are read."""
    return [folder / MANIFEST, *(part / MANIFEST for part in found(folder).values())]


def own_files(folder: Path) -> set[str]:
    """Return the files of the parts, and those beside them, relative to the run's folder."""
    places = [f"{PARTS}/{name}" for name in (TURN, MERGING, LEASE)]
    return {*places, *(f"{PARTS}/{shard.name}/{name}" for shard in found(folder) for name in (MANIFEST, LEASE))}


def is_merging(folder: Path) -> bool:
    """Whether the parts of a run were being merged when that was interrupted."""
    return (folder / PARTS / MERGING).exists()


class Texts:
    """The lines of a run as they are in its files; each is read again by its position, as if there were one file.

    Parameters
    ----------
    folder : Path
        The run's.
    with_parts : bool
        Whether those of shards are among them.
    """

    def __init__(self, folder: Path, *, with_parts: bool = True) -> None:
        self._folder, self._with_parts = folder, with_parts
        self._starts: list[int] = []
        self._paths: list[Path] = []

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Read all lines but torn ones, each with its position.

        Raises
        ------
        OutputError
            If they cannot be read, or were merged meanwhile.
        """
        self._starts, self._paths = [], []
        path = self._folder / MANIFEST
        try:
            # First: what is merged from now on is missed, and that is noticed.
            parts = found(self._folder) if self._with_parts else {}
            with path.open("rb", BLOCK) as whole:
                end = yield from self._lines(path, whole, 0)
                for part in parts.values():
                    path = part / MANIFEST
                    file = self._opened(path, whole)
                    if file:
                        with file:
                            end = yield from self._lines(path, file, end)
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"{path} cannot be read: {error.strerror}", "Check the disk") from error

    def at(self, position: int) -> bytes:
        """Read a line again.

        Raises
        ------
        OSError
            If its file is gone.
        """
        with self.place_of(position).open("rb") as file:
            file.seek(position - self._start_of(position))
            return file.readline()

    def many(self, positions: Sequence[int]) -> Iterator[bytes]:
        """Read many lines again, in any order."""
        for start in range(0, len(positions), GROUP):
            block = positions[start : start + GROUP]
            read: dict[int, bytes] = {}
            for path, group in groupby(sorted(block), self.place_of):
                with path.open("rb", BLOCK) as file:
                    for position in group:
                        file.seek(position - self._start_of(position))
                        read[position] = file.readline()
            yield from (read[position] for position in block)

    def place_of(self, position: int) -> Path:
        """Return the file that a line is in."""
        return self._paths[bisect_right(self._starts, position) - 1]

    def _start_of(self, position: int) -> int:
        return self._starts[bisect_right(self._starts, position) - 1]

    def _lines(self, path: Path, file: BinaryIO, position: int) -> Generator[tuple[int, bytes], None, int]:
        """Read the lines of one file, and return the position behind them."""
        self._starts.append(position)
        self._paths.append(path)
        for text in file:
            if text.endswith(b"\n"):
                yield position, text
                position += len(text)
        return position

    def _opened(self, path: Path, whole: BinaryIO) -> BinaryIO | None:
        """Open a part's manifest; one that is gone was merged before the whole manifest was read, or else lost to us.

        Raises
        ------
        OutputError
            If parts were merged since then.
        """
        try:
            file = path.open("rb", BLOCK)
        except FileNotFoundError:
            file = None
        if not os.path.samestat(os.fstat(whole.fileno()), os.stat(self._folder / MANIFEST)):  # noqa: PTH116
            if file:
                file.close()
            raise OutputError(f"The parts of {self._folder} were merged while they were read", "Try again")
        return file


def _holds_manifest(part: Path) -> bool:
    try:
        return not part.is_symlink() and stat.S_ISREG(os.lstat(part / MANIFEST).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
