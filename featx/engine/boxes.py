# Boxes of a run: which photos have some, which boxes can be used, and why the others cannot.
"""The boxes of ``--boxes``, by photo."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featx.errors import UsageError
from featx.images.annotations import Annotations, Fault, Mark, matched, read_boxes, usable
from featx.images.cells import share_seen
from featx.images.frame import Frame
from featx.paths import path_text
from featx.runs import manifest
from featx.runs.formats import Array
from featx.runs.manifest import Done
from featx.values import BOXES, Field, Item

# The arrays beside the features: edges, ids and labels as given, and the share of each box that the model saw.
FIELDS = (
    Field(BOXES, (None, 4), "float64"),
    Field("box_ids", (None,), "text"),
    Field("box_labels", (None,), "text"),
    Field("box_seen", (None,), "float32"),
)


@dataclass(frozen=True, slots=True)
class Boxes:
    """The boxes of a run's photos.

    Attributes
    ----------
    found : Annotations
        By the run's keys.
    size : tuple of int
        Height and width of a box's features, in cells.
    digest : str
        A sha256 of what the file says, whichever photos the run has.
    """

    found: Annotations
    size: tuple[int, int]
    digest: str = ""

    def of(self, key: str, frame: Frame) -> list[Mark]:
        """Return the boxes of a photo that can be used."""
        return usable(self.found.marks.get(key, ()), frame.original, frame, self.found.sizes.get(key))[0]

    def faults(self, folder: Path) -> list[Fault]:
        """Return the rows of the file that cannot be used, judged by the photos that a run's folder has so far."""
        of_photos = {line.key: faults for line, _, faults in self._compared(folder)}
        found = [*self.found.faults, *(fault for faults in of_photos.values() for fault in faults)]
        return sorted(found, key=lambda fault: fault.line)

    def stale(self, folder: Path, known_as: Mapping[str, str]) -> set[str]:
        """Return photos of a run's folder that now have more or fewer boxes, since the file gives them another size.

        Photos that the run has under another key get that key first.
        """
        self._rename(known_as)
        counts = {line.key: line.boxes == len(good) for line, good, _ in self._compared(folder)}
        return {key for key, same in counts.items() if not same}

    def _compared(self, folder: Path) -> Iterator[tuple[Done, list[Mark], list[Fault]]]:
        """Compare the boxes with the lines of photos that are done; a later line of a photo replaces the earlier."""
        for line in manifest.lines(folder):
            if isinstance(line, Done) and (marks := self.found.marks.get(line.key)):
                yield line, *usable(marks, line.size, line.frame, self.found.sizes.get(line.key))

    def _rename(self, known_as: Mapping[str, str]) -> None:
        moved: tuple[dict[str, Any], ...] = (self.found.marks, self.found.sizes)
        for of_photos in moved:
            for key in known_as.keys() & of_photos.keys():
                of_photos[known_as[key]] = of_photos.pop(key)

    def most(self, items: Sequence[Item]) -> int:
        """Return how many boxes the photo with the most has."""
        return max((len(self.found.marks.get(item.key, ())) for item in items), default=0)

    def mean(self, items: Sequence[Item]) -> int:
        """Return how many boxes a photo has, on average, rounded up."""
        total = sum(len(self.found.marks.get(item.key, ())) for item in items)
        return -(-total // len(items)) if items else 1


def read(path: Path, size: tuple[int, int], items: Sequence[Item]) -> tuple[Boxes, list[Item]]:
    """Read a file of boxes, and return them with the photos that have some.

    Raises
    ------
    UsageError
        If the file cannot be used at all, or no photo has boxes.
    """
    given = read_boxes(path)
    paths = {item.key: path_text(item.path) for item in items}
    boxes = Boxes(matched(given, paths, paths.__getitem__), size, given.digest)
    with_boxes = [item for item in items if item.key in boxes.found.marks]
    if not with_boxes:
        raise _unusable(path, boxes.found, items)
    return boxes, with_boxes


def of_outputs(outputs: Mapping[str, Mapping[str, Array]], size: tuple[int, int]) -> Boxes:
    """Return the boxes that a run's outputs were made of, by key; see `arrays_of`."""
    marks: dict[str, list[Mark]] = {}
    for key, arrays in outputs.items():
        edges, ids, labels = (arrays[field.key].tolist() for field in FIELDS[:3])
        rows = enumerate(zip(edges, ids, labels, strict=True), 1)
        marks[key] = [Mark(key, tuple(place), mark, label, number) for number, (place, mark, label) in rows]
    return Boxes(Annotations(marks, [], {}), size)


def _unusable(path: Path, found: Annotations, items: Sequence[Item]) -> UsageError:
    if not found.faults:
        return UsageError(f"{path} holds no boxes", "Give a file with boxes, or leave out --boxes")
    first = found.faults[0]
    return UsageError(
        f"No box in {path} can be used: {found.counted} {first.line}, {first.key or 'without a name'}: {first.reason}",
        f"Names are matched with those of the images, such as {items[0].key}",
    )


def arrays_of(marks: Sequence[Mark], frame: Frame) -> list[Array]:
    """Return the arrays of `FIELDS` for a photo's usable boxes."""
    edges = np.array([mark.place for mark in marks], np.float64).reshape(-1, 4)
    texts = ([getattr(mark, name) for mark in marks] for name in ("id", "label"))
    return [edges, *(np.array(text, np.str_) for text in texts), share_seen(frame, edges).astype(np.float32)]
