# Viewing: a run's photos and levels as one picture: principal components, strength, attention, or likeness to a point.
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
from featx.errors import FeatxError
from featx.explore import colours, contact, drawing, page, panels, sheets
from featx.explore.cosines import Direction
from featx.explore.sheets import Block, Legend, Panel
from featx.explore.shown import GREY, Shown, as_seen, choose, outside, require_key, shown
from featx.images import cells
from featx.runs import places
from featx.runs.formats import Array
from featx.runs.reading import Run, open_run
from featx.text import spacing
from featx.values import Level

# What the names of arrays of attention end in.
ATTENTION = "_attention"


@dataclass(frozen=True, slots=True)
class View:
    """A picture that was written.

    Attributes
    ----------
    output : Path
        The picture.
    photos, images : int
        Photos that are shown, and photos of the run.
    levels : list of str
        Names of the arrays that are shown.
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
    """Draw photos of a run, and what its levels hold of them.

    The photo as the model saw it comes first, then each level, its cells where they are centred. Colours of principal
    components are the same for all photos of a picture, and for each call on the same photos.

    Parameters
    ----------
    run : path or Run
        A run with maps.
    output : path
        The picture: .png, .jpg or .jpeg. Only pictures that featx wrote are replaced.
    keys : sequence of str
        The photos; none takes the first ones.
    **options
        Those of ``featx view``, by the same names: see `featx.command_options.ViewOptions`.

    Raises
    ------
    FeatxError
        If the picture cannot be written, or the run lacks the photos, maps or attention asked for.
    """
    path = Path(output)
    asked = checked(path, options)
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
    """Return the options, before anything slow begins.

    Raises
    ------
    FeatxError
        If one is wrong, or the picture, or the page, cannot be written.
    """
    asked = ViewOptions(**options)
    if asked.html is None:
        drawing.require_drawable(output)
    else:
        page.require_writable(asked.html)
    return asked


def default_output(first: str) -> Path:
    """Return where a picture goes that nobody named: into the current folder, named after what it shows."""
    path = Path(first).absolute()
    return Path(f"{path.name if path.is_dir() else path.stem or 'photos'}-view.png")


def _keys(run: Run, keys: Sequence[str], asked: ViewOptions) -> list[str]:
    """Choose the photos; the one that has the point is the first."""
    if asked.key is None:
        return choose(run, keys, asked.most)
    require_key(run, asked.key)
    others = [key for key in keys or list(islice(run, asked.most)) if key != asked.key]
    return choose(run, [asked.key, *(others if keys else others[: asked.most - 1])], asked.most)


def _levels(run: Run, asked: ViewOptions) -> list[Level]:
    """Find the levels whose maps, or whose attention, are shown.

    Raises
    ------
    FeatxError
        If the run has none of those, or where their cells lie is unknown.
    """
    have: Sequence[Level] = run.maps
    if asked.attention:
        names = {field.key for field in run.fields}
        have = [level for level in run.levels if f"{level.key}{ATTENTION}" in names]
        if not have:
            raise FeatxError(f"The run {run.folder} has no attention", "Extract it with --attention")
    levels = places.chosen(have, asked.levels)
    for level in levels:
        cells.spacing_of(level)
    return levels


@dataclass(frozen=True, slots=True)
class _Kind:
    """What is drawn of each level: the colours of a photo's cells, what they mean, and the cells that are marked."""

    text: str
    colours: dict[str, Callable[[Array], Array]]
    details: dict[str, str]
    ends: tuple[str, str] | None = None
    best: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)


def _kind(run: Run, photos: Sequence[Shown], levels: Sequence[Level], asked: ViewOptions) -> _Kind:
    if asked.at is not None:
        return _likeness(run, photos, levels, asked.at)
    if asked.attention:
        text = "attention to a cell, the mean of all heads"
        return _scalar(photos, levels, _of_heads, text)
    if asked.activation:
        return _scalar(photos, levels, colours.strength, "strength: the length of a cell's feature vector")
    return _components(photos, levels)


def _components(photos: Sequence[Shown], levels: Sequence[Level]) -> _Kind:
    """Colour the first three principal components of each level, over all photos."""
    chosen = {level.key: colours.colours(_sampled(photos, level)) for level in levels}
    details = {key: f"{each.components.explained:.0%} of its variance" for key, each in chosen.items()}
    joint = "all photos together" if len(photos) > 1 else "this photo"
    text = f"red, green, blue: the first three principal components of a level, of {joint}"
    return _Kind(text, {**chosen}, details)


def _scalar(photos: Sequence[Shown], levels: Sequence[Level], function: Callable[[Array], Array], text: str) -> _Kind:
    """Colour one number of each cell, on a scale of each level that is the same for all photos."""
    ranges = {level.key: colours.limits(function(_sampled(photos, level))) for level in levels}
    return _Kind(
        text, {key: _on_scale(function, *each) for key, each in ranges.items()}, _ranges(ranges), ("low", "high")
    )


def _of_heads(attention: Array) -> Array:
    found: Array = attention.mean(-1)
    return found


def _likeness(run: Run, photos: Sequence[Shown], levels: Sequence[Level], at: tuple[float, float]) -> _Kind:
    """Compare every cell with the point, which lies in the first photo."""
    vectors = run.sample(photos[0].key, [at], levels)
    chosen: dict[str, Callable[[Array], Array]] = {}
    ranges: dict[str, tuple[float, float]] = {}
    best: dict[tuple[str, str], tuple[int, int]] = {}
    for level in levels:
        vector = vectors[level.key][0]
        if not np.isfinite(vector).all():
            raise outside(f"--at {at[0]:g},{at[1]:g}", photos[0].key, photos[0].frame)
        direction = Direction.of(vector, f"The feature at the cross on {level.key}", "Choose another pixel or --level")
        cosine = direction.exactly
        chosen[level.key], ranges[level.key] = cosine, colours.limits(cosine(_sampled(photos, level)))
        best |= {(each.key, level.key): _highest(each, level, cosine) for each in photos[1:]}
    scales = {key: _on_scale(cosine, ranges[key][0], 1.0) for key, cosine in chosen.items()}
    details = _ranges({key: (low, 1.0) for key, (low, _) in ranges.items()})
    text = "cosine similarity to the feature at the cross; the nearest cell of every other photo is framed"
    return _Kind(text, scales, details, ("low", "1"), best)


def _highest(photo: Shown, level: Level, cosine: Callable[[Array], Array]) -> tuple[int, int]:
    """Find the cell on the photo that is most similar: its row and column."""
    values = photo.maps[level.key]
    rows, columns = cells.valid(photo.frame, level, *values.shape[1:])
    found = panels.cellwise(cosine, values[:, rows, columns])
    row, column = np.unravel_index(int(found.argmax()), found.shape)
    return int(row) + rows.start, int(column) + columns.start


def _on_scale(function: Callable[[Array], Array], low: float, high: float) -> Callable[[Array], Array]:
    return lambda features: colours.scaled(function(features), low, high)


def _ranges(ranges: Mapping[str, tuple[float, float]]) -> dict[str, str]:
    return {key: f"{low:.3g} … {high:.3g}" for key, (low, high) in ranges.items()}


def _sampled(photos: Sequence[Shown], level: Level) -> Array:
    """Return features of a level's cells, evenly spaced in each photo where there are many: (cells, C) float32."""
    most = max(64, 4 * colours.MOST // len(photos))
    return np.concatenate([photo.valid(level, most) for photo in photos])


class _Sheet:
    """The picture, and the photos whose files are gone."""

    def __init__(self, run: Run, keys: Sequence[str], asked: ViewOptions) -> None:
        self._run, self._asked, self.levels = run, asked, _levels(run, asked)
        suffix = ATTENTION if asked.attention else ""
        self._photos = [shown(run, key, self.levels, suffix) for key in keys]
        self._kind = _kind(run, self._photos, self.levels, asked)
        self._columns = asked.columns or sheets.columns_for(1 + len(self.levels), len(keys))
        self._width = sheets.panel_width(1 + len(self.levels), self._columns)
        self.gone: list[str] = []

    def picture(self) -> Image.Image:
        head = sheets.heading(self._run, len(self._photos), Legend(self._kind.text, self._kind.ends))
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
        found = f"{across} x {down}, {share:.0%} of it seen" if seen else "its file is gone or has changed"
        own = base.copy()
        self._cross(photo, own)
        fed = " x ".join(map(str, photo.frame.input))
        return Block(photo.key, [Panel(own, ["as the model saw it", f"at {fed}", found]), *made])

    def _level(self, photo: Shown, base: Image.Image, level: Level) -> Panel:
        values, kind = photo.maps[level.key], self._kind
        share = 1.0 if self._asked.overlay is None else self._asked.overlay
        found = panels.cellwise(kind.colours[level.key], values)
        drawn = panels.paint(base, found, photo.frame, level, share, smooth=self._asked.smooth)
        if place := kind.best.get((photo.key, level.key)):
            panels.outline(drawn, photo.frame, level, *place)
        self._cross(photo, drawn)
        shape = " x ".join(map(str, values.shape))
        title = f"{level.key} {level.name}".strip()
        return Panel(drawn, [title, f"{shape}, stride {spacing(level.stride)}", kind.details[level.key]])

    def _cross(self, photo: Shown, panel: Image.Image) -> None:
        if self._asked.at is not None and photo is self._photos[0]:
            panels.mark(panel, photo.frame, *self._asked.at)
