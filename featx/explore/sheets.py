# Sheets: pictures with captions in rows, under a heading and above a legend, as one picture.
"""How a sheet is laid out; what is in its pictures is others' business."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from featx.explore import drawing
from featx.explore.colours import scaled
from featx.explore.drawing import ACCENT, FAINT, INK, PAPER
from featx.runs.reading import Run
from featx.text import count_of
from featx.values import RANDOM_SIMILARITY

# Pixels: the width that a sheet aims at, and its least; what the sides of a panel may be; the space between panels; and
# lines of text.
WIDTH, LEAST, NARROWEST, WIDEST, GAP, LINE = 1200, 640, 150, 420, 14, 17

# Sizes of letters, in pixels.
TITLE, TEXT = 17, 13

# The sides of the legend's scale, in pixels.
SCALE = (160, 12)


@dataclass(frozen=True, slots=True)
class Panel:
    """A picture and the lines below it; those that say what the panel above says, too, are left out."""

    picture: Image.Image
    lines: Sequence[str]


@dataclass(frozen=True, slots=True)
class Block:
    """What belongs together, such as all that is shown of one photo: panels in rows, under a caption."""

    caption: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True)
class Legend:
    """What colours mean: a sentence, and the numbers at both ends of the scale, if they are on one."""

    text: str
    ends: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Heading:
    """What a sheet shows, in one line, and a warning, if there is one."""

    text: str
    warning: str = ""
    legends: Sequence[Legend] = field(default_factory=list)


def heading(run: Run, photos: int, legend: Legend) -> Heading:
    """Name a sheet's model and weights."""
    summary = run.summary
    kind, source = summary["weights"]["kind"], summary["weights"]["source"]
    weights = "random weights" if kind == "random" else f"weights {Path(source).name}"
    text = f"{summary['model']}, {weights}: {count_of(photos, 'photo')}"
    return Heading(text, RANDOM_SIMILARITY if kind == "random" else "", [legend])


def panel_width(panels: int, columns: int) -> int:
    """Return how wide panels are, if so many are side by side, in pixels."""
    across = min(panels, columns)
    return max(NARROWEST, min(WIDEST, (WIDTH - GAP) // across - GAP))


def columns_for(panels: int, blocks: int) -> int:
    """Return how many panels go side by side: rows alike for several blocks, and one block nearly square."""
    if blocks > 1:
        return panels if panels <= 7 else math.ceil(panels / math.ceil(panels / 6))
    return panels if panels <= 3 else math.ceil(panels / 2) if panels <= 8 else 4


def sheet(head: Heading, blocks: Sequence[Block], columns: int) -> Image.Image:
    """Lay out blocks below one another, each with its panels in rows of so many."""
    widest = max(panel.picture.width for block in blocks for panel in block.panels)
    across = max(min(columns, len(block.panels)) for block in blocks)
    rows = [
        [block.panels[at : at + columns] for at in range(0, len(block.panels), columns)] for block in _terse(blocks)
    ]
    height = GAP + height_of(head) + sum(LINE + sum(_height(row) for row in of_block) + GAP for of_block in rows)
    drawn = Image.new("RGB", (max(GAP + across * (widest + GAP), LEAST), height + GAP), PAPER)
    pen = ImageDraw.Draw(drawn)
    top = draw_heading(drawn, pen, head, GAP)
    for block, of_block in zip(blocks, rows, strict=True):
        drawing.caption(pen, (GAP, top), block.caption, drawn.width - 2 * GAP, TEXT + 1)
        top += LINE + 3
        for row in of_block:
            for place, panel in enumerate(row):
                _draw(drawn, pen, panel, (GAP + place * (widest + GAP), top), widest)
            top += _height(row)
        top += GAP - 3
    return drawn


def _in_rows(panels: Sequence[Panel], columns: int) -> list[Sequence[Panel]]:
    return [panels[at : at + columns] for at in range(0, len(panels), columns)]


def _terse(blocks: Sequence[Block]) -> list[Block]:
    """Leave out the lines of panels that say what those of the first block say."""
    first = blocks[0].panels
    rest = [
        replace(
            block,
            panels=[
                replace(panel, lines=[] if place < len(first) and panel.lines == first[place].lines else panel.lines)
                for place, panel in enumerate(block.panels)
            ],
        )
        for block in blocks[1:]
    ]
    return [blocks[0], *rest]


def height_of(head: Heading) -> int:
    """Return the height of a heading and its legends, in pixels."""
    return LINE + 6 + LINE * bool(head.warning) + (LINE + 4) * len(head.legends)


def draw_heading(drawn: Image.Image, pen: ImageDraw.ImageDraw, head: Heading, top: int) -> int:
    """Draw the heading and the legends; returns where they end."""
    room = drawn.width - 2 * GAP
    drawing.caption(pen, (GAP, top), head.text, room, TITLE)
    top += LINE + 6
    if head.warning:
        drawing.caption(pen, (GAP, top), head.warning, room, TEXT, fill=ACCENT)
        top += LINE
    for legend in head.legends:
        drawing.caption(pen, (GAP, top), legend.text, room, TEXT, fill=FAINT)
        if legend.ends:
            _scale(drawn, pen, legend.ends, GAP + pen.textlength(legend.text, ImageFont.load_default(TEXT)) + 12, top)
        top += LINE + 4
    return top


def _scale(drawn: Image.Image, pen: ImageDraw.ImageDraw, ends: tuple[str, str], left: float, top: int) -> None:
    """Draw the scale of colours between its ends."""
    font = ImageFont.load_default(TEXT)
    pen.text((left, top), ends[0], INK, font)
    left += pen.textlength(ends[0], font) + 6
    band = np.broadcast_to(scaled(np.linspace(0, 1, SCALE[0]), 0, 1), (SCALE[1], SCALE[0], 3))
    drawn.paste(Image.fromarray(np.ascontiguousarray(band)), (round(left), top + 3))
    pen.text((left + SCALE[0] + 6, top), ends[1], INK, font)


def _height(row: Sequence[Panel]) -> int:
    return max(panel.picture.height for panel in row) + 3 + (LINE - 1) * max(len(panel.lines) for panel in row) + GAP


def _draw(drawn: Image.Image, pen: ImageDraw.ImageDraw, panel: Panel, corner: tuple[int, int], width: int) -> None:
    drawn.paste(panel.picture, corner)
    left, top = corner[0], corner[1] + panel.picture.height + 3
    for place, line in enumerate(panel.lines):
        at = (left, top + place * (LINE - 1))
        drawing.caption(pen, at, line, width, TEXT, fill=FAINT if place else INK)
