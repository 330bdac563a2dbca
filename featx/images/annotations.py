# Annotations: boxes and points of photos, read from COCO JSON or CSV; what is wrong with a row costs that row alone.
"""Files that say where in photos to look.

Boxes are edges, as COCO has them: a photo of width `w` spans 0 to `w`. Points are pixel centres at integers, as
everywhere in featx: the first pixel of a photo is at (0, 0).
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from os import PathLike

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from featx.collecting import many_records
from featx.images import annotation_rows
from featx.images.annotation_rows import BOX, POINT, Row
from featx.images.cells import seen
from featx.images.frame import Frame


class Mark(Struct, frozen=True, gc=False):
    """A box or a point in a photo.

    Attributes
    ----------
    key : str
        The photo: its name in the file, or, once that is matched, its key in the run.
    place : tuple of float
        ``(x1, y1, x2, y2)``, the edges of a box, or ``(x, y)``, in pixels of the upright photo.
    id, label : str
        As the file has them; empty where it does not say.
    line : int
        Line of the CSV file, whose header is line 1; for COCO, the number of the annotation, from 1.
    """

    key: str
    place: tuple[float, ...]
    id: str
    label: str
    line: int


class Fault(Struct, frozen=True, gc=False):
    """A row of a file that cannot be used: its line, its photo if it names one, and why."""

    line: int
    key: str
    reason: str


class Annotations(Struct, frozen=True):
    """The boxes or points of a file.

    Attributes
    ----------
    marks : dict of str to list of Mark
        By photo, in the order of the file.
    faults : list of Fault
        Rows that cannot be used.
    sizes : dict of str to (int, int)
        Width and height of the photos that the file gives them for.
    counted : str
        What `Mark.line` counts: ``line`` of CSV, or ``annotation`` of COCO.
    """

    marks: dict[str, list[Mark]]
    faults: list[Fault]
    sizes: dict[str, tuple[int, int]]
    counted: str = "line"

    @property
    def digest(self) -> str:
        """A sha256 of the boxes or points, ids and labels by photo; the same for COCO and CSV."""
        hashed = hashlib.sha256()
        for name in sorted(self.marks):
            rows = [(mark.place, mark.id, mark.label) for mark in self.marks[name]]
            hashed.update(msgspec.json.encode((name, rows)))
        return hashed.hexdigest()


@many_records()
def read_boxes(path: str | PathLike[str]) -> Annotations:
    """Read the boxes in a COCO JSON or CSV file; either may be very large.

    Raises
    ------
    UsageError
        If the file cannot be read, or is neither.
    """
    data = annotation_rows.read(path, BOX)
    if data.lstrip()[:1] not in (b"{", b"["):
        return _collected(annotation_rows.of_csv(path, data, BOX), Annotations({}, [], {}))
    rows, sizes = annotation_rows.of_coco(path, data)
    return _collected(rows, Annotations({}, [], sizes, "annotation"))


@many_records()
def read_points(path: str | PathLike[str]) -> Annotations:
    """Read the points in a CSV file.

    Raises
    ------
    UsageError
        If the file cannot be read, or is something else.
    """
    data = annotation_rows.read(path, POINT)
    return _collected(annotation_rows.of_csv(path, data, POINT), Annotations({}, [], {}))


def _collected(rows: Iterable[Row], found: Annotations) -> Annotations:
    """Collect rows by photo; one without a place, or with the id of another in its photo, is a fault."""
    ids: dict[str, dict[str, int]] = {}
    for line, name, place, mark, label in rows:
        reason = place if isinstance(place, str) else ""
        if not name:
            reason = "it names no photo"
        elif mark and not reason and (first := ids.setdefault(name, {}).setdefault(mark, line)) != line:
            reason = f"{found.counted} {first} has the same id, {mark}"
        if reason or isinstance(place, str):
            found.faults.append(Fault(line, name, reason))
        else:
            found.marks.setdefault(name, []).append(Mark(name, place, mark, label, line))
    return found


def matched(annotations: Annotations, keys: Iterable[str], path_of: Callable[[str], str]) -> Annotations:
    """Match the names of photos with a run's keys, and return the annotations by key.

    A name matches the key that equals it; or else the only photo whose key or path ends with the name, compared folder
    by folder. Rows with other names become faults.

    Parameters
    ----------
    annotations : Annotations
        By the names that the file has.
    keys : iterable of str
        Those of the photos.
    path_of : callable
        Returns the path of a key's file, absolute.
    """
    find = _finder(keys, path_of)
    marks: dict[str, list[Mark]] = {}
    faults = list(annotations.faults)
    sizes: dict[str, tuple[int, int]] = {}
    for name, rows in annotations.marks.items():
        found = find(name)
        if len(found) != 1:
            several = f"its name fits several photos, among them {found[0]} and {found[1]}" if found else ""
            reason = several or "no photo of the run has this name"
            faults += [Fault(mark.line, name, reason) for mark in rows]
            continue
        (key,) = found
        same = rows if key == name else [replace(mark, key=key) for mark in rows]
        marks[key] = sorted([*marks[key], *same], key=attrgetter("line")) if key in marks else same
        if name in annotations.sizes:
            sizes[key] = annotations.sizes[name]
    return Annotations(marks, sorted(faults, key=attrgetter("line")), sizes, annotations.counted)


def usable(
    marks: Sequence[Mark], size: tuple[int, int], frame: Frame, said: tuple[int, int] | None = None
) -> tuple[list[Mark], list[Fault]]:
    """Separate the boxes or points of a photo that can be used from those that cannot.

    Parameters
    ----------
    marks : sequence of Mark
        The photo's.
    size : (int, int)
        Width and height of the upright photo.
    frame : Frame
        Where it lies in the model's input.
    said : (int, int) or None
        Width and height of the photo according to the file; None where it gives none.

    Returns
    -------
    list of Mark, list of Fault
        Those that the model saw at least a part of, as the file has them; and the others.
    """
    if said and said != size:
        reason = _other_size(said, size, frame.orientation)
        return [], [Fault(mark.line, mark.key, reason) for mark in marks]
    visible = seen(frame)
    good, faults = [], []
    for mark in marks:
        if reason := _reason(mark.place, size, visible):
            faults.append(Fault(mark.line, mark.key, reason))
        else:
            good.append(mark)
    return good, faults


def _other_size(said: tuple[int, int], size: tuple[int, int], orientation: int) -> str:
    reason = f"the file says that the photo is {said[0]} x {said[1]}, but it is {size[0]} x {size[1]}"
    if orientation >= 5 and said == size[::-1]:
        return f"{reason} when upright (EXIF orientation {orientation})"
    return reason


def _reason(place: tuple[float, ...], size: tuple[int, int], visible: tuple[float, ...]) -> str:
    """Say why a box or a point cannot be used; empty if it can."""
    is_box = len(place) == len(BOX)
    if is_box and not (place[2] > place[0] and place[3] > place[1]):
        return "the box has no area"
    what = "box" if is_box else "point"
    edges = place if is_box else tuple(value + 0.5 for value in (*place, *place))
    if not _overlaps(edges, (0.0, 0.0, *size), closed=not is_box):
        return f"the {what} lies outside the photo, which is {size[0]} x {size[1]}"
    if not _overlaps(edges, visible, closed=not is_box):
        return f"the {what} lies in a part of the photo that was cropped away"
    return ""


def _overlaps(edges: Sequence[float], area: Sequence[float], *, closed: bool) -> bool:
    """Whether two rectangles share an area, or, if `closed`, at least a point."""
    left, top = max(edges[0], area[0]), max(edges[1], area[1])
    right, bottom = min(edges[2], area[2]), min(edges[3], area[3])
    return (right >= left and bottom >= top) if closed else (right > left and bottom > top)


def _finder(keys: Iterable[str], path_of: Callable[[str], str]) -> Callable[[str], list[str]]:
    """Return what finds the keys that a name may mean."""
    exact: dict[str, str] = {}
    tails: dict[str, list[str]] = {}
    for key in keys:
        exact[key] = key
        tails.setdefault(key.rpartition("/")[2], []).append(key)

    def find(name: str) -> list[str]:
        plain = posixpath.normpath(name).lstrip("/")
        if key := exact.get(name) or exact.get(plain):
            return [key]
        near = tails.get(plain.rpartition("/")[2], ())
        return [key for key in near if any(f"/{end}".endswith(f"/{plain}") for end in (key, path_of(key)))]

    return find
