# Viewing: photos of a run and their levels in one picture: components, strength, attention, or similarity to a point.
"""``featx view`` as a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featx.command_options import ViewOptions
from featx.dtypes import ATTENTION
from featx.errors import FeatxError, UsageError
from featx.explore import colours, contact, drawing, page, panels, sheets
from featx.explore.cosines import Direction
from featx.explore.sheets import Block, Legend, Panel
from featx.explore.shown import GREY, Shown, as_seen, choose, find, outside, shown
from featx.images import cells
from featx.paths import is_url
from featx.runs import places
from featx.runs.formats import Array
from featx.runs.reading import Run, open_run
from featx.text import spacing
from featx.values import EMBEDDING, Level


@dataclass(frozen=True, slots=True)
class View:
    """A picture that was written.

    Attributes
    ----------
    output : Path
        The picture.
    photos, images : int
        How many photos it shows, and how many the run has.
    levels : list of str
        Names of the arrays that it shows; with ``grid``, what the photos were compared by.
    gone : list of str
        Keys of photos whose files are gone or have changed; their cells are shown without them.
    weights : str
        What kind of weights made the features, ``random`` for example.
    """

    output: Path
    photos: int
    images: int
    levels: list[str]
    gone: list[str]
    weights: str


def view(
    run: str | PathLike[str] | Run,
    output: str | PathLike[str],
    keys: Sequence[str] = (),
    **options: Any,
) -> View:
    """Draw photos of a run and their features.

    Each photo as the model saw it is followed by its levels, whose cells are drawn where they lie in the photo. Colours
    of principal components are the same for all photos of a picture, and for every call on the same photos.

    Parameters
    ----------
    run : path or Run
        A run with maps.
    output : path
        The picture: .png, .jpg or .jpeg. Only pictures that featx wrote are replaced.
    keys : sequence of str
        The photos, by their keys or files; none takes the first ones.
    **options
        Those of `featx.command_options.ViewOptions`, but for ``html`` and ``max_mb``: `featx.explore.page.write_page`
        writes pages.

    Raises
    ------
    FeatxError
        If the picture cannot be written, or the run lacks the photos, maps or attention asked for.
    """
    path = Path(output)
    asked = checked(path, options)
    if asked.html:
        raise UsageError("view draws a picture, and html asks for a page", "Use featx.explore.page.write_page")
    opened = run if isinstance(run, Run) else open_run(run)
    chosen = _keys(opened, keys, asked)
    if asked.grid:
        drawn, names, gone = contact.sheet(opened, chosen, asked)
    else:
        made = _Sheet(opened, chosen, asked)
        drawn, names, gone = made.picture(), [level.key for level in made.levels], made.gone
    drawing.save(drawn, path)
    return View(path, len(chosen), len(opened), names, gone, opened.summary["weights"]["kind"])


def checked(output: Path, options: Mapping[str, Any]) -> ViewOptions:
    """Check the options, before anything slow begins.

    Raises
    ------
    FeatxError
        If one is wrong, or the picture or page cannot be written.
    """
    asked = ViewOptions(**options)
    if asked.html is None:
        drawing.require_drawable(output)
    else:
        page.require_writable(asked.html)
    return asked


def default_output(first: str) -> Path:
    """Name a picture after the first path that it shows; a pattern of paths names none."""
    path = Path(first).absolute()
    name = path.name if path.is_dir() or is_url(first) else path.stem if path.exists() else ""
    return Path(f"{name or 'photos'}-view.png")


def _keys(run: Run, keys: Sequence[str], asked: ViewOptions) -> list[str]:
    """Choose the photos; the one that has the point is the first."""
    if asked.key is None:
        return choose(run, keys, asked.most)
    first = find(run, asked.key)
    others = keys or [key for key in islice(run, asked.most) if key != first][: asked.most - 1]
    return choose(run, [first, *others], asked.most)


def _levels(run: Run, asked: ViewOptions) -> list[Level]:
    """Find the levels whose maps, or whose attention, are shown.

    Raises
    ------
    FeatxError
        If the run has none of those, or nobody knows where their cells lie.
    """
    have: Sequence[Level] = run.maps
    if not have and EMBEDDING in {field.key for field in run.fields}:
        raise UsageError("The run has embeddings, but no maps", "Compare its photos with --grid")
    if asked.attention:
        names = {field.key for field in run.fields}
        have = [level for level in run.levels if f"{level.key}{ATTENTION}" in names]
        if not have:
            raise FeatxError(f"The run {run.name} has no attention", "Extract it with --attention")
    levels = places.chosen(have, asked.levels)
    for level in levels:
        cells.spacing_of(level)
    return levels


@dataclass(frozen=True, slots=True)
class _Colouring:
    """How cells are coloured, and which of them are outlined.

    Attributes
    ----------
    text : str
        What the colours mean.
    colours : dict of str to callable
        Key of a level to what turns features (…, C) into colours (…, 3).
    details : dict of str to str
        Key of a level to a caption.
    ends : tuple of str or None
        What stands at both ends of the colours' scale, if they are on one.
    best : dict of (str, str) to (int, int)
        Keys of a photo and a level to the row and column of the cell that is outlined.
    """

    text: str
    colours: dict[str, Callable[[Array], Array]]
    details: dict[str, str]
    ends: tuple[str, str] | None = None
    best: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)


def _colouring(run: Run, photos: Sequence[Shown], levels: Sequence[Level], asked: ViewOptions) -> _Colouring:
    if asked.at is not None:
        return _similarity(run, photos, levels, asked.at)
    if asked.attention:
        return _scalar(photos, levels, _of_heads, "attention to each cell, averaged over heads")
    if asked.activation:
        return _scalar(photos, levels, colours.strength, "strength: the length of each cell's feature vector")
    return _components(photos, levels)


def _components(photos: Sequence[Shown], levels: Sequence[Level]) -> _Colouring:
    """Colour the first three principal components of each level, over all photos."""
    chosen = {level.key: colours.colours(_sampled(photos, level)) for level in levels}
    details = {key: f"{each.components.explained:.0%} of variance explained" for key, each in chosen.items()}
    joint = ", joint over all photos" if len(photos) > 1 else ""
    return _Colouring(f"red, green, blue: each level's first three principal components{joint}", {**chosen}, details)


def _scalar(
    photos: Sequence[Shown], levels: Sequence[Level], function: Callable[[Array], Array], text: str
) -> _Colouring:
    """Colour one number per cell; each level has its own scale, the same for all photos."""
    ranges = {level.key: colours.limits(function(_sampled(photos, level))) for level in levels}
    scales = {key: _on_scale(function, *each) for key, each in ranges.items()}
    return _Colouring(text, scales, _ranges(ranges), ("low", "high"))


def _of_heads(attention: Array) -> Array:
    found: Array = attention.mean(-1)
    return found


def _similarity(run: Run, photos: Sequence[Shown], levels: Sequence[Level], at: tuple[float, float]) -> _Colouring:
    """Compare every cell with the feature at a point of the first photo."""
    vectors = run.sample(photos[0].key, [at], levels)
    scales: dict[str, Callable[[Array], Array]] = {}
    ranges: dict[str, tuple[float, float]] = {}
    best: dict[tuple[str, str], tuple[int, int]] = {}
    for level in levels:
        vector = vectors[level.key][0]
        if not np.isfinite(vector).all():
            raise outside(f"--at {at[0]:g},{at[1]:g}", photos[0].key, photos[0].frame)
        direction = Direction.of(vector, f"The feature at the cross on {level.key}", "Choose another pixel or --level")
        cosine = direction.exactly
        ranges[level.key] = colours.limits(cosine(_sampled(photos, level)))[0], 1.0
        scales[level.key] = _on_scale(cosine, *ranges[level.key])
        others = [each for each in photos[1:] if each.region(level)[0].stop]
        best |= {(each.key, level.key): _highest(each, level, cosine) for each in others}
    text = "cosine similarity to the feature at the cross; the most similar cell of each other photo is outlined"
    return _Colouring(text, scales, _ranges(ranges), ("low", "1"), best)


def _highest(photo: Shown, level: Level, cosine: Callable[[Array], Array]) -> tuple[int, int]:
    """Find the row and column of the most similar cell on the photo."""
    rows, columns = photo.region(level)
    found = panels.cellwise(cosine, photo.maps[level.key][:, rows, columns])
    row, column = np.unravel_index(int(found.argmax()), found.shape)
    return int(row) + rows.start, int(column) + columns.start


def _on_scale(function: Callable[[Array], Array], low: float, high: float) -> Callable[[Array], Array]:
    return lambda features: colours.scaled(function(features), low, high)


def _ranges(ranges: Mapping[str, tuple[float, float]]) -> dict[str, str]:
    return {key: f"{low:.3g} … {high:.3g}" for key, (low, high) in ranges.items()}


def _sampled(photos: Sequence[Shown], level: Level) -> Array:
    """Return features of a level, of evenly spaced cells in each photo where there are many: (cells, C) float32."""
    most = max(64, 4 * colours.MOST // len(photos))
    return np.concatenate([photo.features(level, most) for photo in photos])


class _Sheet:
    """The picture, and the photos whose files are gone."""

    def __init__(self, run: Run, keys: Sequence[str], asked: ViewOptions) -> None:
        self._run, self._asked, self.levels = run, asked, _levels(run, asked)
        suffix = ATTENTION if asked.attention else ""
        self._photos = [shown(run, key, self.levels, suffix) for key in keys]
        self._colouring = _colouring(run, self._photos, self.levels, asked)
        self._columns = asked.columns or sheets.columns_for(1 + len(self.levels), len(keys))
        self._width = sheets.panel_width(1 + len(self.levels), self._columns)
        self.gone: list[str] = []

    def picture(self) -> Image.Image:
        head = sheets.heading(self._run, len(self._photos), Legend(self._colouring.text, self._colouring.ends))
        return sheets.sheet(head, [self._block(photo) for photo in self._photos], self._columns)

    def _block(self, photo: Shown) -> Block:
        size = panels.size_of(photo.frame, self._width)
        seen = as_seen(photo, *size)
        if seen is None:
            self.gone.append(photo.key)
        base = seen or Image.new("RGB", size, GREY)
        made = [self._level(photo, base, level) for level in self.levels]
        across, down = photo.frame.original
        x1, y1, x2, y2 = cells.seen(photo.frame)
        share = (x2 - x1) * (y2 - y1) / (across * down)
        found = f"{share:.0%} of a {across} x {down} photo" if seen else "its file is gone or has changed"
        own = base.copy()
        self._cross(photo, own)
        size_seen = f"{' x '.join(map(str, photo.frame.input))} pixels"
        return Block(photo.key, [Panel(own, ["as the model saw it", size_seen, found]), *made])

    def _level(self, photo: Shown, base: Image.Image, level: Level) -> Panel:
        values, colouring, placed = photo.maps[level.key], self._colouring, photo.placed[level.key]
        found = panels.cellwise(colouring.colours[level.key], values)
        drawn = panels.paint(base, found, photo.frame, placed, self._asked.overlay or 1.0, smooth=self._asked.smooth)
        if place := colouring.best.get((photo.key, level.key)):
            panels.outline(drawn, photo.frame, placed, *place)
        self._cross(photo, drawn)
        shape = " x ".join(map(str, values.shape))
        title = f"{level.key} {level.name}".strip()
        return Panel(drawn, [title, f"{shape}, stride {spacing(placed.stride)}", colouring.details[level.key]])

    def _cross(self, photo: Shown, panel: Image.Image) -> None:
        if self._asked.at is not None and photo is self._photos[0]:
            panels.mark(panel, photo.frame, *self._asked.at)
