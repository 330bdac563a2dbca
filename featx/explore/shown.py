# Shown: which photos and levels of a run are looked at, and each photo as the model saw it.
"""What pictures and pages of a run are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil, floor, sqrt

import numpy as np
from PIL import Image

from featx.errors import FeatxError, UnreadableError, UsageError
from featx.explore.queries import key_of
from featx.images import cells
from featx.images.frame import Frame
from featx.images.pictures import picture
from featx.nearest import did_you_mean
from featx.options import Limits
from featx.paths import to_path
from featx.runs.formats import Array
from featx.runs.reading import Run
from featx.text import count_of, printable
from featx.values import Level

# The colour of bars, and of photos that are gone.
GREY = (170, 170, 170)


@dataclass(frozen=True, slots=True)
class Shown:
    """A photo of a run, and its maps that are shown.

    Attributes
    ----------
    key, path : str
        Its key, and the image file when it was extracted.
    frame : Frame
        Where it lies in the model's input.
    maps : dict of str to array
        Key of each level to what is shown of it, (C, H, W): its map, or its attention (heads, H, W).
    placed : dict of str to Level
        Key of each level to the level as it lies in this photo.
    """

    key: str
    path: str
    frame: Frame
    maps: Mapping[str, Array]
    placed: Mapping[str, Level]

    def valid(self, level: Level) -> Array:
        """Return the features of the cells whose centres lie on the photo: (cells, C) float32."""
        rows, columns = self.region(level)
        return _rows(self.maps[level.key][:, rows, columns])

    def features(self, level: Level, most: int | None = None) -> Array:
        """Return the features that stand for the photo: (cells, C) float32, at least one.

        They are those of `valid`, or of all cells if the photo is too narrow for any cell to be centred on it. Of more
        than `most`, those of every second, third … row and column are returned.
        """
        values, (rows, columns) = self.maps[level.key], self.region(level)
        found = values[:, rows, columns] if rows.stop else values
        step = 1 if most is None else max(1, ceil(sqrt(found.shape[1] * found.shape[2] / most)))
        return _rows(found[:, ::step, ::step])

    def region(self, level: Level) -> tuple[slice, slice]:
        """Return the rows and columns of the cells whose centres lie on the photo; both empty if there are none."""
        return cells.valid(self.frame, self.placed[level.key], *self.maps[level.key].shape[1:])


def _rows(values: Array) -> Array:
    """Return the features of each cell of a (C, H, W) map: (H W, C) float32."""
    return np.asarray(values, np.float32).reshape(len(values), -1).T


def choose(run: Run, keys: Sequence[str], most: int) -> list[str]:
    """Return the keys of the photos to be shown: those named, or else the run's first ones.

    Raises
    ------
    FeatxError
        If the run has no photos, lacks one of those named, or more than `most` are named.
    """
    chosen = list(dict.fromkeys(find(run, key) for key in keys)) or list(islice(run, most))
    if not chosen:
        raise FeatxError(f"The run {run.name} has no photo with features", "Extract some photos first")
    if len(chosen) > most:
        raise FeatxError(
            f"{count_of(len(chosen), 'photo')} were named, but at most {most} can be shown",
            "Name fewer, or raise --max-photos",
        )
    return chosen


def find(run: Run, photo: str) -> str:
    """Return the key of a photo that is named by its key, or by its file.

    Raises
    ------
    FeatxError
        If the run does not have it, or it failed.
    """
    if photo in run.failed:
        raise FeatxError(f"{printable(photo)} failed in the run, and has no features", "Choose another photo")
    key = photo if photo in run else key_of(run, photo)
    if key is None:
        hint = did_you_mean(photo, run) or "The keys are in its manifest.jsonl"
        raise FeatxError(f"The run has no photo {printable(photo)}", hint)
    return key


def shown(run: Run, key: str, levels: Sequence[Level], suffix: str = "") -> Shown:
    """Open a photo's maps, or with a suffix the arrays beside them; their numbers are read when they are used.

    Raises
    ------
    FeatxError
        If they are missing or damaged.
    """
    line = run.line(key)
    placed = {level.key: run.placed(line, level) for level in levels}
    return Shown(key, to_path(line.path), line.frame, run.read_maps(key, levels, suffix), placed)


def outside(place: str, photo: str, frame: Frame, *, edges: bool = False) -> UsageError:
    """Return the error for a place that the model did not see; it names the pixels, or the edges, that it saw."""
    x1, y1, x2, y2 = (edge - (0 if edges else 0.5) for edge in cells.seen(frame))
    size = " x ".join(map(str, frame.original))
    return UsageError(
        f"{place} lies outside what the model saw of {printable(photo)}",
        f"It saw x from {ceil(x1)} to {floor(x2)} and y from {ceil(y1)} to {floor(y2)}; the photo is {size}",
    )


def as_seen(each: Shown, width: int, height: int) -> Image.Image | None:
    """Draw a photo as the model saw it, cropped, stretched or with grey bars, in (width, height) pixels.

    Returns None if its file is gone, cannot be read, or is no longer of the same size.
    """
    try:
        image = picture(each.path, Limits())
    except UnreadableError:
        return None
    if image.size != tuple(each.frame.original):
        return None
    x1, y1, x2, y2 = cells.seen(each.frame)
    left, top = _drawn(each.frame, x1, y1, width, height)
    right, bottom = _drawn(each.frame, x2, y2, width, height)
    size = max(1, right - left), max(1, bottom - top)
    drawn = Image.new("RGB", (width, height), GREY)
    drawn.paste(image.resize(size, Image.Resampling.BICUBIC, (x1, y1, x2, y2), reducing_gap=3.0), (left, top))
    return drawn


def _drawn(frame: Frame, x: float, y: float, width: int, height: int) -> tuple[int, int]:
    """Find a corner of a photo in a drawing of the model's input."""
    across, down = frame.to_input(x - 0.5, y - 0.5)
    return round((across + 0.5) / frame.input[0] * width), round((down + 0.5) / frame.input[1] * height)
