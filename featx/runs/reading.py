# open_run: a finished folder as a mapping from image to arrays, and as a torch Dataset.
"""Reading features back."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import convert

from featx.errors import FeatxError
from featx.images.frame import Frame
from featx.runs import formats, manifest
from featx.runs.formats import Array
from featx.runs.layout import MANIFEST
from featx.runs.manifest import Done, Line
from featx.runs.summary import require_summary
from featx.values import EMBEDDING, Field, Level

if TYPE_CHECKING:
    from featx.runs.dataset import FeatureDataset

REPAIR = "Run `featx verify --repair` on the folder, then the same extract command"


class Run(Mapping[str, Mapping[str, Array]]):
    """A run's folder, read-only: image key to its arrays.

    Iterating gives the keys of the images that have features, in the order in which they were first done. Arrays are
    memory-mapped: ``run["cats/1.jpg"]["level_2"]`` reads nothing until its numbers are used.

    Attributes
    ----------
    folder : Path
        Where it lies.
    summary : dict
        Its ``summary.json``.
    levels : tuple of Level
        The levels of every image.
    final : Level or None
        The map that embeddings are made of, if the run has it.
    fields : tuple of Field
        All arrays of every image.
    failed : set of str
        Keys of the images that have no features because something was wrong with them.
    reader : featx.runs.formats.Reader
        What reads them.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = Path(folder)
        self.summary = require_summary(folder)
        self.levels = convert(self.summary["levels"], tuple[Level, ...])
        self.final = convert(self.summary.get("final"), Level | None)
        self.fields = convert(self.summary["arrays"], tuple[Field, ...])
        self.reader = self._reader()
        self._positions: dict[str, int] = {}
        self._outputs: dict[str, str] = {}
        self.failed: set[str] = set()
        position = 0
        for text, line in manifest.texts(self.folder):
            if isinstance(line, Done):
                self._positions[line.key] = position
                self._outputs[line.key] = sys.intern(line.output)
                self.failed.discard(line.key)
            elif line:
                self.failed.add(line.key)
                self._positions.pop(line.key, None)
                self._outputs.pop(line.key, None)
            position += len(text)

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
        return self.reader.read(key, self._outputs[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)

    def output(self, key: str) -> str:
        """Return the file that holds an image's arrays, relative to the folder."""
        return self._outputs[key]

    def frame(self, key: str) -> Frame:
        """Where the original image lies in the model's input.

        Raises
        ------
        FeatxError
            As `line` does.
        """
        return self.line(key).frame

    def embeddings(self) -> Iterator[tuple[list[str], Array]]:
        """Read the embeddings block by block: keys, and an (n, D) float32 array of theirs.

        Raises
        ------
        FeatxError
            If the run has none, or one of them is missing or cannot be read.
        """
        if EMBEDDING not in (field.key for field in self.fields):
            raise FeatxError(f"The run {self.folder} has no embeddings", "Extract it with --embedding")
        return self._blocks()

    def _blocks(self) -> Iterator[tuple[list[str], Array]]:
        try:
            yield from self.reader.vectors(self._outputs.items())
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise FeatxError(
                f"An embedding in {self.folder} is missing or damaged: {error}",
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
            Item `n` is a dict: ``key``, and a tensor for each array, such as (C, H, W) for ``level_N``.
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
            with (self.folder / MANIFEST).open("rb") as file:
                file.seek(position)
                line: Line | None = manifest.parsed(file.readline())
        except (OSError, ValueError):
            line = None
        if not isinstance(line, Done) or line.key != key:
            raise FeatxError(f"The run {self.folder} has changed since it was opened", "Open it again")
        return line

    def __repr__(self) -> str:
        return f"<featx run {str(self.folder)!r}: {len(self)} images, {self.summary['model']}>"


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


def open_run(folder: str | PathLike[str]) -> Run:
    """Open the folder that ``featx extract`` wrote.

    Raises
    ------
    FeatxError
        If it is not a run.
    """
    return Run(folder)
