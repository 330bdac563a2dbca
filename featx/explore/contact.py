# Contact sheets: a run's photos as thumbnails, similar ones side by side and framed in similar colours.
"""Many photos at a glance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

from featx.command_options import ViewOptions
from featx.errors import FeatxError
from featx.explore import colours, drawing, sheets
from featx.explore.drawing import PAPER
from featx.explore.sheets import GAP, Legend
from featx.explore.shown import shown
from featx.images.pictures import thumbnail
from featx.paths import to_path
from featx.runs import places
from featx.runs.formats import Array
from featx.runs.reading import Run
from featx.values import EMBEDDING

# In pixels: the smallest and largest side of a thumbnail with its frame, the width of the frame, the space between
# thumbnails, and the side from which they have captions.
SMALLEST, LARGEST, FRAME, SPACE, CAPTIONED = 52, 220, 5, 6, 120


def sheet(run: Run, keys: Sequence[str], asked: ViewOptions) -> tuple[Image.Image, list[str], list[str]]:
    """Draw photos as thumbnails, each beside one that is similar, in frames of similar colours.

    The colours are those of the first three principal components of the photos' vectors.

    Returns
    -------
    picture : PIL.Image.Image
    names : list of str
        What the photos were compared by.
    gone : list of str
        Keys of photos whose files are gone.

    Raises
    ------
    FeatxError
        If the run has neither embeddings nor maps.
    """
    vectors, name = _vectors(run, keys, asked)
    order = chain(vectors)
    frames = colours.colours(vectors)(vectors)
    layout = _Layout(len(keys), asked.columns)
    legend = Legend(f"similar photos are side by side, in frames of similar colours; compared by {name}")
    head = sheets.heading(run, len(keys), legend)
    drawn = Image.new("RGB", (layout.width, GAP + sheets.height_of(head) + layout.height), PAPER)
    pen, gone = ImageDraw.Draw(drawn), []
    top = sheets.draw_heading(drawn, pen, head, GAP)
    with ThreadPoolExecutor() as pool:  # Pillow decodes without holding Python's lock
        files = [to_path(run.line(keys[place]).path) for place in order]
        images = pool.map(partial(thumbnail, side=layout.side - 2 * FRAME), files)
        for at, (place, image) in enumerate(zip(order, images, strict=True)):
            corner = layout.corner(at, top)
            layout.draw(drawn, pen, corner, image, tuple(map(int, frames[place])), keys[place])
            gone += [] if image else [keys[place]]
    return drawn, [name], gone


class _Layout:
    """Where thumbnails go, all in pixels."""

    def __init__(self, count: int, columns: int | None) -> None:
        room = sheets.WIDTH - 2 * GAP
        self._columns = columns or min(max(1, math.ceil(math.sqrt(count * 1.2))), room // (SMALLEST + SPACE))
        self.side = max(SMALLEST, min(LARGEST, room // self._columns - SPACE))
        self._captioned = self.side >= CAPTIONED
        self._step = self.side + SPACE, self.side + SPACE + sheets.LINE * self._captioned
        self.width = max(sheets.LEAST, 2 * GAP + self._columns * self._step[0])
        self.height = GAP + math.ceil(count / self._columns) * self._step[1]

    def corner(self, at: int, top: int) -> tuple[int, int]:
        row, column = divmod(at, self._columns)
        return GAP + column * self._step[0], top + row * self._step[1]

    def draw(
        self,
        drawn: Image.Image,
        pen: ImageDraw.ImageDraw,
        corner: tuple[int, int],
        image: Image.Image | None,
        frame: tuple[int, ...],
        key: str,
    ) -> None:
        """Draw a thumbnail in its frame, or a cross if its file is gone."""
        left, top = corner
        box = (left, top, left + self.side - 1, top + self.side - 1)
        pen.rectangle(box, fill=frame)
        if image:
            drawn.paste(image, (left + (self.side - image.width) // 2, top + (self.side - image.height) // 2))
        else:
            drawing.cross_out(pen, box)
        if self._captioned:
            drawing.caption(pen, (left, top + self.side), key, self.side, sheets.TEXT - 1)


def chain(vectors: Array) -> list[int]:
    """Order vectors (n, D) so that neighbours are similar: each is followed by the most similar of those left."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    left = np.ones(len(unit), bool)
    order = [0]
    for _ in range(1, len(unit)):
        left[order[-1]] = False
        order.append(int(np.where(left, unit @ unit[order[-1]], -np.inf).argmax()))
    return order


def _vectors(run: Run, keys: Sequence[str], asked: ViewOptions) -> tuple[Array, str]:
    """Return a centred vector for each photo, its embedding or the mean of a level's map, and which of them it is."""
    if asked.levels is None and EMBEDDING in {field.key for field in run.fields}:
        wanted = set(keys)
        found: dict[str, Array] = {}
        for names, rows in run.embeddings():
            found |= {name: row for name, row in zip(names, rows, strict=True) if name in wanted}
        return _centred(np.array([found[key] for key in keys], np.float64)), EMBEDDING
    if not run.maps:
        raise FeatxError(f"The run {run.name} has neither embeddings nor maps", "Extract it with --embedding")
    level = places.chosen(run.maps, asked.levels)[-1]
    means = [shown(run, key, [level]).features(level).mean(0) for key in keys]
    return _centred(np.array(means, np.float64)), f"mean of {level.key}"


def _centred(vectors: Array) -> Array:
    centred: Array = vectors - vectors.mean(0)
    return centred
