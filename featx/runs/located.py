# Places in photos: where the cells of a run's levels lie, and the features at points and in boxes.
"""What `featx.runs.reading.Run` tells of the places in its photos."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from featx.conversions import bins
from featx.images import cells
from featx.images.frame import Frame
from featx.images.grid import pooled
from featx.runs import places
from featx.runs.basis import Basis, stored
from featx.runs.formats import Array
from featx.runs.manifest import Done
from featx.runs.places import Levels, Named
from featx.values import Level


class Located(Mapping[str, Mapping[str, Array]]):
    """A mapping from photos to arrays that knows where these lie in the photos.

    Attributes
    ----------
    folder : Path
        The run's.
    summary : dict
        Its ``summary.json``.
    maps : tuple of Level
        The levels whose maps are among the arrays.
    """

    folder: Path
    summary: dict[str, Any]
    maps: tuple[Level, ...]
    _basis: Basis | None = None

    @abstractmethod
    def line(self, key: str) -> Done:
        """Return the manifest's line of an image."""

    @abstractmethod
    def read_maps(self, key: str, levels: Sequence[Level], suffix: str = "") -> dict[str, Array]:
        """Return arrays of an image's levels."""

    @abstractmethod
    def sizes(self, key: str) -> dict[str, tuple[int, int]]:
        """Return the height and width of each of an image's maps, in cells, by the names of their arrays."""

    def frame(self, key: str) -> Frame:
        """Where the original image lies in the model's input.

        Raises
        ------
        FeatxError
            As `line` does.
        """
        return self.line(key).frame

    def level(self, key: str, level: Named) -> Level:
        """Return a level as it lies in a photo; not that of `levels` only where each photo has a grid of its own.

        Raises
        ------
        KeyError
            If the image has no features.
        FeatxError
            If the run lacks that map.
        """
        return self.placed(self.line(key), self._map(level))

    def placed(self, line: Done, level: Level) -> Level:
        """Return a level as it lies in the photo of a line of the manifest."""
        size = (line.pooled or {}).get(level.key)
        return pooled(level, size, tuple(self.summary["recipe"]["grid"])) if size else level

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
        return cells.to_pixel(self.frame(key), self.level(key, level), row, column)

    def pixel_to_cell(self, key: str, level: Named, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
        """Find the cells of a level at points of a photo: row and column; the inverse of `cell_to_pixel`.

        Both are fractions, `i` at the centre of cell `i`: round them to get the cell. They lie outside the map if the
        model did not see the point.
        """
        return cells.to_cell(self.frame(key), self.level(key, level), x, y)

    def cell_box(self, key: str, level: Named, row: ArrayLike, column: ArrayLike) -> tuple[Array, Array, Array, Array]:
        """Find the boxes in a photo that cells of a level cover: one stride wide and high, not clipped to the photo.

        Returns
        -------
        x1, y1, x2, y2 : array
            Edges in pixels of the photo, as in COCO: a photo of width `w` spans 0 … w; an edge is its point plus 0.5.
        """
        return cells.box_of(self.frame(key), self.level(key, level), row, column)

    def valid(self, key: str, level: Named) -> tuple[slice, slice]:
        """Find the rows and columns of a level whose cells are centred on the photo, and not on bars."""
        found = self.level(key, level)
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
        return places.sample(self.read_maps(key, chosen), self.frame(key), self._placed(key, chosen), points)

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
        return places.regions(self.read_maps(key, chosen), self.frame(key), self._placed(key, chosen), boxes, shape)

    def unproject(self, level: Named, values: ArrayLike) -> Array:
        """Return from components to the channels of the network: the mean plus the components that the values weigh.

        Parameters
        ----------
        level : int, str or Level
            The level.
        values : array_like
            Features of it: (C, H, W) or (B, C, H, W), as in the run and from `regions`, or (C,) or (P, C), as from
            `sample`.

        Returns
        -------
        array
            The same with all channels, float32; of a level that kept its channels, the values as they are.

        Raises
        ------
        FeatxError
            If the run lacks that map, or its basis is missing or was changed.
        """
        found, given = self._map(level), np.asarray(values, np.float32)
        recipe = self.summary["recipe"]
        if recipe["basis"] is None:
            return given
        self._basis = self._basis or stored(self.folder, recipe["basis"])
        return self._basis.unprojected(found.key, recipe["components"], given)

    def _placed(self, key: str, levels: Sequence[Level]) -> list[Level]:
        line = self.line(key)
        return [self.placed(line, level) for level in levels]

    def _map(self, level: Named) -> Level:
        return places.chosen(self.maps, level)[0]
