# sample: features of boxes or at points in the photos of a finished run, as one table.
"""``featx sample`` as a function."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from featx.command_options import SampleOptions
from featx.engine.events import Checked
from featx.errors import FeatxError, OutputError, UsageError
from featx.explore import vector_tables
from featx.explore.vector_tables import TABLES, Rows
from featx.images import cells
from featx.images.annotation_rows import BOX, POINT
from featx.images.annotations import Fault, Mark, matched, read_boxes, read_points, usable
from featx.images.frame import Frame
from featx.requests import ONE
from featx.runs import places
from featx.runs.formats import Array
from featx.runs.reading import Run, open_run
from featx.text import listed
from featx.values import Level

# The most bytes of features made at a time, however many boxes a photo has.
BLOCK = 32 << 20


@dataclass(frozen=True, slots=True)
class Sampled:
    """A table that was written.

    Attributes
    ----------
    output : Path
        The file.
    rows, photos : int
        The number of its rows, and of the photos in which these lie.
    arrays : dict of str to tuple
        Name of each column of features to the shape of one of them: (C,), or (C, h, w).
    what : str
        What the rows are: ``box`` or ``point``.
    faults : list of Fault
        Rows of the annotations that have no row in the table, in order of their lines.
    counted : str
        What their lines count: ``line`` of CSV, or ``annotation`` of COCO.
    weights : str
        What kind of weights made the features, ``random`` for example.
    """

    output: Path
    rows: int
    photos: int
    arrays: dict[str, tuple[int, ...]]
    what: str
    faults: list[Fault]
    counted: str
    weights: str


def sample(
    run: str | PathLike[str] | Run,
    output: str | PathLike[str],
    *,
    boxes: str | PathLike[str] | None = None,
    points: str | PathLike[str] | None = None,
    levels: Sequence[int | str] | None = None,
    box_size: int | str | tuple[int, int] = 1,
    listener: Callable[[Checked], None] = lambda _: None,
) -> Sampled:
    """Write the features of boxes, or at points, in a run's photos as a table.

    What is wrong with a row of the annotations costs that row alone. `featx.runs.reading.Run.regions` and `sample` say
    what the numbers are.

    Parameters
    ----------
    run : path or Run
        A run with maps.
    output : path
        A new file, whose suffix chooses the format: ``.parquet``, ``.npz`` or ``.csv``.
    boxes, points : path or None
        The annotations, one of them: see `featx.images.annotations`.
    levels : sequence of int or str, or None
        The maps, by the indices of their levels or the names of their arrays; None takes all.
    box_size : int or (int, int)
        Height and width of a box's features.
    listener : callable
        Called with the progress, photo by photo.

    Raises
    ------
    FeatxError
        If the output cannot be written, the run has no such maps, or the annotations cannot be read.
    """
    asked = SampleOptions(boxes=boxes, points=points, levels=levels, box_size=box_size)  # type: ignore[arg-type]
    path = Path(output)
    _require_sense(asked, path)
    _require_new(path)
    opened = run if isinstance(run, Run) else open_run(run)
    chosen = places.chosen(opened.maps, asked.levels)
    for level in chosen:
        cells.spacing_of(level)
    work = _Work(opened, chosen, asked)
    vector_tables.write(path, work.empty(), work.blocks(listener))
    return work.result(path)


def _require_sense(asked: SampleOptions, path: Path) -> None:
    """Refuse options that contradict each other, and a table that no format can hold."""
    if asked.boxes is None and asked.points is None:
        raise UsageError("sample needs boxes or points", "Add --boxes FILE or --points FILE")
    if asked.boxes is not None and asked.points is not None:
        raise UsageError("--boxes and --points cannot be combined", ONE)
    if asked.points is not None and asked.box_size != (1, 1):
        raise UsageError("--box-size is for --boxes", "Leave it out: a point gives one vector per level")
    if path.suffix.lower() not in TABLES:
        raise UsageError(f"--output: {path} has no suffix that names a format", f"End it in {listed(list(TABLES))}")
    if asked.box_size != (1, 1) and path.suffix.lower() != ".npz":
        size = " x ".join(map(str, asked.box_size))
        raise UsageError(f"Only .npz holds {size} cells per box", "End --output in .npz, or leave out --box-size")


def _require_new(path: Path) -> None:
    """Refuse an output before the work starts: one that exists, or whose folder or library is missing."""
    if not path.parent.is_dir():
        raise OutputError(f"There is no folder {path.parent}", "Create it, or choose another --output")
    if os.path.lexists(path):
        raise OutputError(f"{path} exists", "Choose another --output, or remove it first")
    vector_tables.require(path.suffix.lower())


class _Work:
    """The rows of a table, made photo by photo, and what happened on the way."""

    def __init__(self, run: Run, levels: Sequence[Level], asked: SampleOptions) -> None:
        self._run, self._levels, self._size = run, levels, asked.box_size
        self._names = POINT if asked.boxes is None else BOX
        file = asked.points if asked.boxes is None else asked.boxes
        read = (read_points if asked.boxes is None else read_boxes)(str(file))
        if not (read.marks or read.faults):
            what = "points" if asked.boxes is None else "boxes"
            raise FeatxError(f"{file} holds no {what}", f"Give a file that lists {what}")
        self._found = matched(read, [*run, *run.failed], lambda key: run.line(key).path if key in run else "")
        self._faults = list(self._found.faults)
        self._rows = self._photos = 0
        bins = () if asked.box_size == (1, 1) else asked.box_size
        self._shapes = {level.key: (level.channels, *bins) for level in levels}
        self._block = max(1, BLOCK // (4 * sum(map(math.prod, self._shapes.values()))))

    def result(self, path: Path) -> Sampled:
        """Return what was written to a path."""
        what, kind = "point" if self._names is POINT else "box", self._run.summary["weights"]["kind"]
        faults = sorted(self._faults, key=lambda fault: fault.line)
        return Sampled(path, self._rows, self._photos, self._shapes, what, faults, self._found.counted, kind)

    def empty(self) -> Rows:
        """Return the table without rows."""
        features = {key: np.empty((0, *shape), np.float32) for key, shape in self._shapes.items()}
        return self._columns([], Frame.of((1, 1)), features)

    def blocks(self, listener: Callable[[Checked], None]) -> Iterator[Rows]:
        """Make the rows, photo by photo in the order of the file."""
        total = len(self._found.marks)
        for done, (key, marks) in enumerate(self._found.marks.items(), 1):
            before = self._rows
            yield from self._of_photo(key, marks)
            self._photos += self._rows > before
            listener(Checked(done, total))

    def _of_photo(self, key: str, marks: Sequence[Mark]) -> Iterator[Rows]:
        if key in self._run.failed:
            self._refuse(marks, "the photo failed in the run, and has no features")
            return
        line = self._run.line(key)
        good, faults = usable(marks, line.size, line.frame, self._found.sizes.get(key))
        self._faults += faults
        for start in range(0, len(good), self._block):
            block = good[start : start + self._block]
            try:
                features = self._features(key, np.array([mark.place for mark in block]))
            except FeatxError as error:
                self._refuse(block, error.message)
                continue
            self._rows += len(block)
            yield self._columns(block, line.frame, features)

    def _refuse(self, marks: Sequence[Mark], reason: str) -> None:
        self._faults += [Fault(mark.line, mark.key, reason) for mark in marks]

    def _features(self, key: str, given: Array) -> dict[str, Array]:
        if self._names is POINT:
            return self._run.sample(key, given, self._levels)
        found = self._run.regions(key, given, self._levels, self._size)
        return {key: found[key].reshape(-1, *shape) for key, shape in self._shapes.items()}

    def _columns(self, marks: Sequence[Mark], frame: Frame, features: dict[str, Array]) -> Rows:
        given = np.array([mark.place for mark in marks], np.float64).reshape(-1, len(self._names))
        return {
            "key": [mark.key for mark in marks],
            **dict(zip(self._names, given.T, strict=True)),
            "id": [mark.id for mark in marks],
            "label": [mark.label for mark in marks],
            **({"seen": cells.share_seen(frame, given).astype(np.float32)} if self._names is BOX else {}),
            **features,
        }
