# open_run: a finished folder as a mapping from image to arrays, and as a torch Dataset.
"""Reading features back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx import manifest
from featx.formats import Array, read_npz
from featx.geometry import Frame
from featx.naming import MANIFEST
from featx.records import Level

if TYPE_CHECKING:
    from featx.dataset import FeatureDataset


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
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.summary = manifest.require_summary(folder)
        self.levels = tuple(Level.from_json(value) for value in self.summary["levels"])
        self._positions: dict[str, int] = {}
        for position, line in manifest.lines(folder):
            if line["status"] == "done":
                self._positions[line["key"]] = position
            else:
                self._positions.pop(line["key"], None)

    def __getitem__(self, key: str) -> Mapping[str, Array]:
        """Return ``level_N`` -> (C, H, W) array of one image."""
        return read_npz(self.folder / self.line(key)["output"])

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)

    def frame(self, key: str) -> Frame:
        """Where the original image lies in the model's input."""
        return Frame.from_json(self.line(key)["frame"])

    def dataset(self, levels: Sequence[int] | None = None) -> FeatureDataset:
        """Return the run as a `torch.utils.data.Dataset`.

        Parameters
        ----------
        levels : sequence of int or None
            Indices of the levels to read; None reads all.

        Returns
        -------
        FeatureDataset
            Item `n` is a dict: ``key``, and a (C, H, W) tensor for each ``level_N``.
        """
        from featx.dataset import FeatureDataset

        return FeatureDataset(self, levels)

    def line(self, key: str) -> dict[str, Any]:
        """Return the manifest's line of an image."""
        # Read where it stands: kept in memory, those of a million images would take gigabytes.
        with (self.folder / MANIFEST).open("rb") as file:
            file.seek(self._positions[key])
            line: dict[str, Any] = json.loads(file.readline())
        return line

    def __repr__(self) -> str:
        return f"<featx run {str(self.folder)!r}: {len(self)} images, {self.summary['model']}>"


def open_run(folder: str | PathLike[str]) -> Run:
    """Open the folder that ``featx extract`` wrote.

    Raises
    ------
    FeatxError
        If it is none.
    """
    return Run(Path(folder))
