# Tiles: the sheet of a search, with photos side by side, their names and scores, and places that are marked.
"""Drawing what `similar` finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from featx.explore import drawing
from featx.explore.drawing import ACCENT, INK, PAPER
from featx.images.pictures import thumbnail

# Size of a sheet's thumbnails, the space below each for its text, and the number per row.
THUMBNAIL, CAPTION, GAP, ACROSS = 224, 34, 12, 5

# Half the length of a mark's cross, and the smallest side of its box, which may be larger than the cell.
ARM, SMALLEST = 3, 15


@dataclass(frozen=True, slots=True)
class Tile:
    """A photo on a sheet.

    Attributes
    ----------
    file, name, note : str
        The photo's path, and the two lines below it.
    framed : bool
        Whether it is framed, as the query is.
    mark : tuple of float or None
        The place in it that is marked: edges x1, y1, x2, y2 as shares of its width and height.
    """

    file: str
    name: str
    note: str
    framed: bool = False
    mark: tuple[float, ...] | None = None


def draw(tiles: Sequence[Tile], path: Path) -> None:
    """Draw photos side by side.

    Raises
    ------
    OutputError
        If the sheet cannot be written; see `featx.explore.drawing.require_drawable`.
    """
    across = min(ACROSS, len(tiles))
    down = -(-len(tiles) // across)
    step = (THUMBNAIL + GAP, THUMBNAIL + CAPTION + GAP)
    sheet = Image.new("RGB", (GAP + across * step[0], GAP + down * step[1]), PAPER)
    for place, tile in enumerate(tiles):
        _draw_tile(sheet, (GAP + place % across * step[0], GAP + place // across * step[1]), tile)
    drawing.save(sheet, path)


def _draw_tile(sheet: Image.Image, corner: tuple[int, int], tile: Tile) -> None:
    """Draw one photo, as large as fits, with its name and note below; a cross if the file is gone."""
    pen, (left, top) = ImageDraw.Draw(sheet), corner
    frame = (left - 3, top - 3, left + THUMBNAIL + 2, top + THUMBNAIL + 2)
    if image := thumbnail(tile.file, THUMBNAIL):
        if tile.mark:
            _mark(ImageDraw.Draw(image), [share * side for share, side in zip(tile.mark, image.size * 2, strict=True)])
        sheet.paste(image, (left + (THUMBNAIL - image.width) // 2, top + (THUMBNAIL - image.height) // 2))
    else:  # gone or unreadable by now; its name and score are still valid
        drawing.cross_out(pen, frame)
    if tile.framed:
        pen.rectangle(frame, outline=ACCENT, width=3)
    drawing.caption(pen, (left, top + THUMBNAIL + 4), tile.name, THUMBNAIL)
    drawing.caption(pen, (left, top + THUMBNAIL + 19), tile.note, THUMBNAIL, fill=ACCENT if tile.framed else INK)


def _mark(pen: Any, box: Sequence[float]) -> None:
    """Mark a box and its centre, in a colour between two light lines, so that it shows on any photo."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    across, down = max(box[2] - box[0], SMALLEST) / 2, max(box[3] - box[1], SMALLEST) / 2
    for colour, width, more in ((PAPER, 4, 1), (ACCENT, 2, 0)):
        pen.rectangle((x - across - more, y - down - more, x + across + more, y + down + more), None, colour, width)
    for colour, width, more in ((PAPER, 3, 1), (ACCENT, 1, 0)):
        pen.line((x - ARM - more, y, x + ARM + more, y), colour, width)
        pen.line((x, y - ARM - more, x, y + ARM + more), colour, width)
