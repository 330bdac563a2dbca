# open_run: a finished folder as a mapping from image to arrays, and as a torch Dataset.
"""Reading features back."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from msgspec import convert
from numpy.typing import ArrayLike

from featx.declaring import bins
from featx.errors import FeatxError
from featx.images import cells
from featx.images.frame import Frame
from featx.runs import formats, manifest, places
from featx.runs.formats import Array
from featx.runs.manifest import Done, Line
from featx.runs.mirror import located
from featx.runs.parts import Texts
from featx.runs.places import Levels, Named
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
        Where it lies; of a run behind a URL, where its manifest is as long as it is open.
    name : str
        Its folder, or its URL.
    summary : dict
        Its ``summary.json``.
    levels : tuple of Level
        The levels of every image.
    final : Level or None
        The map that embeddings are made of, if the run has it.
    fields : tuple of Field
        All arrays of every image.
    modules : tuple of Level
        The maps of modules, if the run has them.
    maps : tuple of Level
        The levels, the final map and those of modules, as far as they are among the arrays.
    failed : set of str
        Keys of the images that have no features because something was wrong with them.
    reader : featx.runs.formats.Reader
        What reads them.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.summary = require_summary(folder)
        self._mirror, self.folder, self.name = located(folder, self)
        self.levels = convert(self.summary["levels"], tuple[Level, ...])
        self.final = convert(self.summary.get("final"), Level | None)
        self.modules = convert(self.summary.get("modules", ()), tuple[Level, ...])
        self.fields = convert(self.summary["arrays"], tuple[Field, ...])
        kept = {field.key for field in self.fields if len(field.shape) == 3}
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
        return self.reader.read(key, self._outputs[key])

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

    def frame(self, key: str) -> Frame:
        """Where the original image lies in the model's input.

        Raises
        ------
        FeatxError
            As `line` does.
        """
        return self.line(key).frame

    def sizes(self, key: str) -> dict[str, tuple[int, int]]:
        """Return the height and width of each of an image's maps, in cells, by the names of their arrays."""
        return {name: (values.shape[1], values.shape[2]) for name, values in self.read_maps(key, self.maps).items()}

    def cell_to_pixel(self, key: str, level: Named, row: ArrayLike, column: ArrayLike) -> tuple[Array, Array]:
        """Find the points of a photo at which cells of a level are centred.

        Parameters
        ----------
        key : str
            The photo.
        level : int, str or Level
            The level: its index, the name of its array (``level_2``), or itself.
        row, column : array_like
            Cells, of shapes that numpy broadcasts; fractions lie between cells.

        Returns
        -------
        x, y : array
            Points in pixels of the photo as a viewer shows it, pixel centres at integers: a photo of width `w` spans
            -0.5 … w - 0.5. Cells on bars give points outside the photo.

        Raises
        ------
        KeyError
            If the image has no features.
        FeatxError
            If the run lacks that map, or its level's offset or stride is unknown.
        """
        return cells.to_pixel(self.frame(key), self._map(level), row, column)

    def pixel_to_cell(self, key: str, level: Named, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
        """Find the cells of a level at points of a photo: row and column; the inverse of `cell_to_pixel`.

        Both are fractions, `i` at the centre of cell `i`: round them to get the cell. They lie outside the map if the
        model did not see the point.
        """
        return cells.to_cell(self.frame(key), self._map(level), x, y)

    def cell_box(self, key: str, level: Named, row: ArrayLike, column: ArrayLike) -> tuple[Array, Array, Array, Array]:
        """Find the boxes in a photo that cells of a level cover: one stride wide and high, not clipped to the photo.

        Returns
        -------
        x1, y1, x2, y2 : array
            Edges in pixels of the photo, as in COCO: a photo of width `w` spans 0 … w; an edge is its point plus 0.5.
        """
        return cells.box_of(self.frame(key), self._map(level), row, column)

    def valid(self, key: str, level: Named) -> tuple[slice, slice]:
        """Find the rows and columns of a level whose cells are centred on the photo, and not on bars."""
        found = self._map(level)
        return cells.valid(self.frame(key), found, *self.sizes(key)[found.key])

    def sample(self, key: str, points: ArrayLike, levels: Levels = None) -> dict[str, Array]:
        """Sample features at points of a photo, interpolating bilinearly between cells.

        Parameters
        ----------
        key : str
            The photo.
        points : array_like
            (P, 2): x, y in pixels of the photo as a viewer shows it, pixel centres at integers.
        levels : int, str or Level, or a sequence of them, or None
            The maps; None takes all.

        Returns
        -------
        dict of str to array
            Name of the array to (P, C) float32; NaN where a point lies outside what the model saw of the photo.

        Raises
        ------
        KeyError
            If the image has no features.
        FeatxError
            If the run lacks a map, a level's offset or stride is unknown, or the maps are damaged.
        """
        chosen = places.chosen(self.maps, levels)
        return places.sample(self.read_maps(key, chosen), self.frame(key), chosen, points)

    def regions(
        self, key: str, boxes: ArrayLike, levels: Levels = None, size: int | tuple[int, int] = (1, 1)
    ) -> dict[str, Array]:
        """Average features in boxes of a photo, by ``torchvision.ops.roi_align`` (aligned).

        Boxes are clipped to what the model saw of the photo. The numbers of a box do not depend on the other boxes.

        Parameters
        ----------
        key : str
            The photo.
        boxes : array_like
            (B, 4): x1, y1, x2, y2, edges in pixels of the photo as a viewer shows it: a photo of width `w` spans 0 … w.
        levels : int, str or Level, or a sequence of them, or None
            The maps; None takes all.
        size : int or (int, int)
            Height and width of the result; 1 gives a box one vector.

        Returns
        -------
        dict of str to array
            Name of the array to (B, C, h, w) float32; NaN for a box that lies outside what the model saw, has no area,
            or is not finite.

        Raises
        ------
        KeyError, FeatxError
            As `sample` does.
        """
        shape, chosen = bins("size", size), places.chosen(self.maps, levels)
        return places.regions(self.read_maps(key, chosen), self.frame(key), chosen, boxes, shape)

    def _map(self, level: Named) -> Level:
        return places.chosen(self.maps, level)[0]

    def read_maps(self, key: str, levels: Sequence[Level], suffix: str = "") -> dict[str, Array]:
        """Return arrays of an image's levels: each level's `key` to (C, H, W), memory-mapped.

        With a suffix, such as ``_attention``, these are the arrays of that name beside the levels.

        Raises
        ------
        KeyError
            If the image has no features.
        FeatxError
            If they are missing or damaged.
        """
        output, names = self._outputs[key], {level.key: level.key + suffix for level in levels}
        try:
            arrays = self.reader.read(key, output, list(names.values()))
            return {level: arrays[name] for level, name in names.items()}
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


def open_run(folder: str | PathLike[str]) -> Run:
    """Open the folder that ``featx extract`` wrote, or a run behind a URL; its outputs are fetched when they are read.

    Raises
    ------
    FeatxError
        If it is not a run.
    """
    return Run(folder)
