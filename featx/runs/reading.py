# open_run: a finished folder as a mapping from image to arrays, and as a torch Dataset.
"""Reading features back."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from os import PathLike
from typing import TYPE_CHECKING, Any

from msgspec import convert

from featx.errors import FeatxError
from featx.runs import formats, manifest
from featx.runs.formats import Array
from featx.runs.located import Located
from featx.runs.manifest import Done, Line
from featx.runs.mirror import located
from featx.runs.parts import Texts
from featx.runs.restored import Restored, needed, restored_fields
from featx.runs.summary import require_summary
from featx.values import EMBEDDING, Field, Level

if TYPE_CHECKING:
    from featx.runs.dataset import FeatureDataset

REPAIR = "Run `featx verify --repair` on the folder, then the same extract command"


class Run(Located):
    """A run's folder, read-only: image key to its arrays.

    Iterating gives the keys of the images that have features, in the order in which they were first done. Arrays are
    memory-mapped: ``run["cats/1.jpg"]["level_2"]`` reads nothing until its numbers are used. Maps that are stored as
    float16, bfloat16 or int8 are given as float32, each when it is asked for; opened with ``raw=True``, a run gives
    them as they are stored, memory-mapped, and the scales of int8 beside them (``level_2_scale``). Methods always use
    float32.

    Attributes
    ----------
    folder : Path
        Where it lies; of a run behind a URL, where its manifest is as long as it is open.
    name : str
        Its folder, or its URL.
    summary : dict
        Its ``summary.json``.
    raw : bool
        Whether arrays are given as they are stored.
    levels : tuple of Level
        The levels of every image, as their maps are stored: with the cells of the grid, and as many channels as
        components. Where photos have grids of different sizes, `level` tells stride and offset.
    final : Level or None
        The map that embeddings are made of, if the run has it.
    fields : tuple of Field
        All arrays of every image, as they are given.
    modules : tuple of Level
        The maps of modules, if the run has them.
    maps : tuple of Level
        The levels, the final map and those of modules, as far as they are among the arrays.
    failed : set of str
        Keys of the images that have no features because something was wrong with them.
    reader : featx.runs.formats.Reader
        What reads them.
    """

    def __init__(self, folder: str | PathLike[str], *, raw: bool = False) -> None:
        self.raw = raw
        self.summary = require_summary(folder)
        self._mirror, self.folder, self.name = located(folder, self)
        self.levels = convert(self.summary["levels"], tuple[Level, ...])
        self.final = convert(self.summary.get("final"), Level | None)
        self.modules = convert(self.summary.get("modules", ()), tuple[Level, ...])
        self._stored = convert(self.summary["arrays"], tuple[Field, ...])
        self.fields = self._stored if raw else restored_fields(self._stored)
        kept = {field.key for field in self._stored if len(field.shape) == 3}
        every = (*self.levels, self.final, *self.modules)
        self.maps = tuple(level for level in every if level and level.key in kept)
        self.reader = self._reader()
        self._positions: dict[str, int] = {}
        self._outputs: dict[str, str] = {}
        self.failed: set[str] = set()
        self._texts = Texts(self.folder)
        for position, line in manifest.texts(self._texts):
            if isinstance(line, Done):
                self._positions[line.key] = position
                self._outputs[line.key] = sys.intern(line.output)
                self.failed.discard(line.key)
            elif line:
                self.failed.add(line.key)
                self._positions.pop(line.key, None)
                self._outputs.pop(line.key, None)

    def _reader(self) -> formats.Reader:
        return formats.reader(require_format(self.summary), self.folder, lambda key: self.line(key).sha256)

    def __getstate__(self) -> dict[str, Any]:
        """All but what is open: a data loader's worker opens it again, and has the images that were there before."""
        return {name: value for name, value in vars(self).items() if name != "reader"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.reader = self._reader()

    def __getitem__(self, key: str) -> Mapping[str, Array]:
        """Return the arrays of one image: ``level_N`` -> (C, H, W), ``embedding`` -> (D,) and so on."""
        arrays = self.reader.read(key, self._outputs[key])
        return arrays if self.raw else Restored(arrays)

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)

    def __contains__(self, key: object) -> bool:
        """Whether an image has features, by the manifest; its file is not opened."""
        return key in self._positions

    def output(self, key: str) -> str:
        """Return the file that holds an image's arrays, relative to the folder."""
        return self._outputs[key]

    def sizes(self, key: str) -> dict[str, tuple[int, int]]:
        """Return the height and width of each of an image's maps, in cells, by the names of their arrays."""
        arrays = self._read(key, [level.key for level in self.maps])
        return {level.key: (arrays[level.key].shape[1], arrays[level.key].shape[2]) for level in self.maps}

    def read_maps(self, key: str, levels: Sequence[Level], suffix: str = "") -> dict[str, Array]:
        """Return arrays of an image's levels: each level's `key` to (C, H, W), float32, memory-mapped where they are.

        With a suffix, such as ``_attention``, these are the arrays of that name beside the levels.

        Raises
        ------
        KeyError
            If the image has no features.
        FeatxError
            If they are missing or damaged.
        """
        names = {level.key: level.key + suffix for level in levels}
        arrays = Restored(self._read(key, list(names.values())))
        return {level: arrays[name] for level, name in names.items()}

    def _read(self, key: str, names: Sequence[str]) -> Mapping[str, Array]:
        """Read some arrays as they are stored."""
        output, stored = self._outputs[key], list(chain.from_iterable(needed(name, self._stored) for name in names))
        try:
            arrays = self.reader.read(key, output, stored)
            return {name: arrays[name] for name in stored}
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise damaged(key, error) from error

    def embeddings(self) -> Iterator[tuple[list[str], Array]]:
        """Read the embeddings block by block: keys, and an (n, D) float32 array of theirs.

        Raises
        ------
        FeatxError
            If the run has none, or one of them is missing or cannot be read.
        """
        if EMBEDDING not in (field.key for field in self.fields):
            raise FeatxError(f"The run {self.name} has no embeddings", "Extract it with --embedding")
        return self._blocks()

    def _blocks(self) -> Iterator[tuple[list[str], Array]]:
        try:
            yield from self.reader.vectors(self._outputs.items())
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise FeatxError(
                f"An embedding in {self.name} is missing or damaged: {error}",
                REPAIR,
            ) from error

    def dataset(self, levels: Sequence[int | str] | None = None) -> FeatureDataset:
        """Return the run as a `torch.utils.data.Dataset`.

        Parameters
        ----------
        levels : sequence of int or str, or None
            Levels by their indices, or arrays by their names (``neck_1``, ``embedding``); None reads all.

        Returns
        -------
        FeatureDataset
            Item `n` is a dict: ``key``, and a tensor for each array, such as (C, H, W) for ``level_N``. Ids and labels
            of boxes are lists of text.
        """
        from featx.runs.dataset import FeatureDataset

        return FeatureDataset(self, [field.key for field in self.fields], levels)

    def line(self, key: str) -> Done:
        """Return the manifest's line of an image.

        Raises
        ------
        KeyError
            If the image has no features.
        FeatxError
            If another process has rewritten the manifest since the run was opened.
        """
        # Read from the file: the lines of a million images would take gigabytes of memory.
        position = self._positions[key]
        try:
            line: Line | None = manifest.parsed(self._texts.at(position))
        except (OSError, ValueError):
            line = None
        if not isinstance(line, Done) or line.key != key:
            raise FeatxError(f"The run {self.name} has changed since it was opened", "Open it again")
        return line

    def __repr__(self) -> str:
        return f"<featx run {self.name!r}: {len(self)} images, {self.summary['model']}>"


def damaged(key: str, why: object) -> FeatxError:
    """Return the error that says that the maps of a photo cannot be used."""
    return FeatxError(f"The maps of {key} are missing or damaged: {why}", REPAIR)


def require_format(summary: dict[str, Any]) -> str:
    """Return the name of a run's format.

    Raises
    ------
    FeatxError
        If it is not known, or needs a library that is not installed.
    """
    name = str(summary["recipe"].get("format"))
    formats.require(name)
    return name


def open_run(folder: str | PathLike[str], *, raw: bool = False) -> Run:
    """Open the folder that ``featx extract`` wrote, or a run behind a URL; its outputs are fetched when they are read.

    Parameters
    ----------
    folder : path
        The run's.
    raw : bool
        Whether to give arrays as they are stored, memory-mapped, instead of maps as float32.

    Raises
    ------
    FeatxError
        If it is not a run.
    """
    return Run(folder, raw=raw)
