# Shown: which photos and levels of a run are looked at, and each photo as the model saw it.
"""What pictures and pages of a run are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, sqrt

import numpy as np
from PIL import Image

from featx.errors import FeatxError, UnreadableError, UsageError
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
    """

    key: str
    path: str
    frame: Frame
    maps: Mapping[str, Array]

    def valid(self, level: Level, most: int | None = None) -> Array:
        """Return the features of the cells whose centres lie on the photo: (cells, C) float32.

        Of more than `most`, those of every second, third … row and column are returned.
        """
        values = self.maps[level.key]
        rows, columns = cells.valid(self.frame, level, *values.shape[1:])
        found = values[:, rows, columns]
        step = 1 if most is None else max(1, ceil(sqrt(found.shape[1] * found.shape[2] / most)))
        return np.asarray(found[:, ::step, ::step], np.float32).reshape(len(values), -1).T


def choose(run: Run, keys: Sequence[str], most: int) -> list[str]:
    """Return the keys of a run's photos to be shown: those asked for, or else its first ones, at most so many.

    Raises
    ------
    FeatxError
        If the run has no photos, lacks one of those asked for, or more are asked for than may be shown.
    """
    chosen = list(dict.fromkeys(keys)) or list(run)[:most]
    if not chosen:
        raise FeatxError(f"The run {run.folder} has no photo with features", "Extract some photos first")
    if len(chosen) > most:
        raise FeatxError(f"{count_of(len(chosen), 'photo')} are more than {most}", "Name fewer, or raise --max-photos")
    for key in chosen:
        require_key(run, key)
    return chosen


def require_key(run: Run, key: str) -> None:
    """Refuse a photo that the run does not have.

    Raises
    ------
    FeatxError
        If it has none of that key, or the photo failed.
    """
    if key in run.failed:
        raise FeatxError(f"{printable(key)} failed in the run, and has no features", "Choose another photo")
    if key not in run:
        hint = did_you_mean(key, run) or "The keys are in its manifest.jsonl"
        raise FeatxError(f"The run {run.folder} has no photo {printable(key)}", hint)


def shown(run: Run, key: str, levels: Sequence[Level], suffix: str = "") -> Shown:
    """Read a photo's line, and its levels' maps or the arrays beside them; numbers are read when they are used.

    Raises
    ------
    FeatxError
        If they are missing or damaged.
    """
    line = run.line(key)
    return Shown(key, to_path(line.path), line.frame, run.read_maps(key, levels, suffix))


def outside(place: str, photo: str, frame: Frame, *, edges: bool = False) -> UsageError:
    """Return the error of a place that the model did not see; it names the pixels, or the edges, that it saw."""
    x1, y1, x2, y2 = (edge - (0 if edges else 0.5) for edge in cells.seen(frame))
    size = " x ".join(map(str, frame.original))
    return UsageError(
        f"{place} lies outside what the model saw of {printable(photo)}",
        f"It saw x from {ceil(x1)} to {floor(x2)} and y from {ceil(y1)} to {floor(y2)}; the photo is {size}",
    )


def as_seen(each: Shown, width: int, height: int) -> Image.Image | None:
    """Draw a photo as the model saw it: cropped, stretched or with grey bars; (width, height) pixels stand for all.

    Returns None if its file is gone, cannot be read, or has another size than it had.
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
    """Find the edge of a photo in a drawing of the model's input."""
    across, down = frame.to_input(x - 0.5, y - 0.5)
    return round((across + 0.5) / frame.input[0] * width), round((down + 0.5) / frame.input[1] * height)
