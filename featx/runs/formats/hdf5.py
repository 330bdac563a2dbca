# HDF5: one file with a group for each image; only converted to, since a killed writer would ruin it.
"""A finished run as one HDF5 file.

The group of an image has its key as its path, a dataset for each array, and the attributes ``path``, ``width`` and
``height``. The file is written under a temporary name, and gets its own when it is complete and safe on the disk.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featx import files
from featx.errors import FeatxError
from featx.runs.formats import Array, Record, Stored
from featx.runs.formats.arrays import digest_of, vectors_of
from featx.runs.manifest import Done
from featx.values import Field

try:
    import h5py
except ImportError as error:
    raise FeatxError("The format hdf5 needs h5py", "Run `pip install 'featx[hdf5]'`") from error

FILE = "features.h5"


class Writer:
    """Writes a file group by group; it is committed once."""

    largest = group = room = sys.maxsize
    seconds = float("inf")

    def __init__(self, folder: Path, unfinished: Path, fields: Sequence[Field]) -> None:
        self._path, self._temporary = folder / FILE, unfinished / FILE
        self._file: Any = None

    def write(self, record: Record) -> Stored:
        """Add the group of an image.

        Raises
        ------
        FeatxError
            If an array of another image has that name.
        """
        self._file = self._file or h5py.File(self._temporary, "w")
        try:
            group = self._file.create_group(record.item.key, track_order=True)
        except ValueError as error:
            raise FeatxError(
                f"{record.item.key} cannot be a group of an HDF5 file, in which an array has that name",
                "Choose another --format",
            ) from error
        group.attrs.update(path=record.path, width=record.size[0], height=record.size[1])
        arrays = {name: np.asarray(values) for name, values in record.arrays.items()}
        for name, values in arrays.items():
            text = values.dtype.kind == "U"
            group.create_dataset(name, data=values.astype(object) if text else values, dtype=_text() if text else None)
        size = sum(values.nbytes for values in arrays.values())
        return Stored(size, digest_of(arrays), None)

    def commit(self, group: Sequence[Stored]) -> list[str]:
        """Give the file its name."""
        if self._file:
            self._file.close()
            self._file = None
            files.commit({self._temporary: self._path})
        return [FILE] * len(group)

    def abandon(self, kept: Sequence[Stored]) -> None:
        """Leave a file that is not complete to be removed with everything unfinished."""

    def collect_garbage(self, done: Mapping[str, str], digests: Callable[[], Mapping[str, str]]) -> None:
        """Remove the file, if nothing in it is in the manifest."""
        if not done:
            files.remove(self._path)


class Reader:
    """Looks groups up by their keys, and maps their datasets."""

    def __init__(self, folder: Path, digest: Callable[[str], str]) -> None:
        self._root = os.path.realpath(folder)
        self._file: Any = None
        self._alone = threading.Lock()

    def holds(self, key: str, output: str, size: int) -> bool:
        """Whether there is a group of it, with so many bytes in all."""
        try:
            return sum(values.nbytes for values in self.read(key, output).values()) == size
        except (OSError, KeyError, ValueError):
            return False

    def read(self, key: str, output: str, names: Collection[str] | None = None) -> Mapping[str, Array]:
        """Map the datasets of a group; those of text are read."""
        path = files.inside(self._root, output)
        with self._alone:
            self._file = self._file or h5py.File(path, "r")
            group = self._file[key]
            found = {name: each for name, each in group.items() if isinstance(each, h5py.Dataset)}
            return {name: _mapped(path, found[name]) for name in (found if names is None else names)}

    def fault(self, line: Done) -> str:
        """Compare the sha256 of a group's arrays, and what it says of the image."""
        try:
            digest = digest_of(self.read(line.key, line.output))
        except KeyError:
            return "missing"
        if digest != line.sha256:
            return "sha256 differs"
        with self._alone:
            facts = dict(self._file[line.key].attrs)
        recorded = {"path": line.path, "width": line.size[0], "height": line.size[1]}
        return "" if facts == recorded else f"says {facts}, not {recorded}"

    def files(self, outputs: Iterable[str]) -> set[str]:
        """The file itself."""
        return set(outputs)

    def strays(self, done: Mapping[str, str]) -> dict[str, list[str]]:
        """A file is complete, or not there."""
        return {}

    def vectors(self, places: Iterable[tuple[str, str]]) -> Iterator[tuple[list[str], Array]]:
        """Read one vector out of each group."""
        return vectors_of(self, places)


def _mapped(path: Path, dataset: Any) -> Array:
    """Map a dataset of numbers where they lie in one piece."""
    if h5py.check_string_dtype(dataset.dtype):
        return np.array(dataset.asstr()[()], np.str_)
    place = dataset.id.get_offset()
    if place is None or dataset.dtype.kind not in "iuf":
        return np.asarray(dataset[()])
    return np.memmap(path, dataset.dtype, "r", place, dataset.shape)


def _text() -> Any:
    return h5py.string_dtype()
