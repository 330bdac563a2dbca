# Sheets: pictures with captions in rows, under a heading with a legend, as one picture.
"""How a sheet is laid out; other modules draw its panels."""

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

# In pixels: the intended and the smallest width of a sheet, the smallest and largest width of a panel, the space
# between panels, and the height of a line of text.
WIDTH, LEAST, NARROWEST, WIDEST, GAP, LINE = 1200, 640, 150, 420, 14, 17

# Sizes of letters, in pixels.
TITLE, TEXT = 17, 13

# Width and height of the legend's colour scale, in pixels.
SCALE = (160, 12)


@dataclass(frozen=True, slots=True)
class Panel:
    """A picture and the lines of text below it."""

    picture: Image.Image
    lines: Sequence[str]


@dataclass(frozen=True, slots=True)
class Block:
    """Panels that belong together, such as those of one photo: in rows, under a caption."""

    caption: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True)
class Legend:
    """What colours mean, and what stands at both ends of their scale, if they have one."""

    text: str
    ends: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Heading:
    """What a sheet shows, in one line, a warning, if there is one, and legends."""

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
    """Return the width of panels, in pixels, of which at most `columns` stand side by side."""
    across = min(panels, columns)
    return max(NARROWEST, min(WIDEST, (WIDTH - GAP) // across - GAP))


def columns_for(panels: int, blocks: int) -> int:
    """Choose the number of panels side by side: full rows for several blocks, a nearly square layout for one."""
    if blocks > 1:
        return panels if panels <= 7 else math.ceil(panels / math.ceil(panels / 6))
    return panels if panels <= 3 else math.ceil(panels / 2) if panels <= 8 else 4


def sheet(head: Heading, blocks: Sequence[Block], columns: int) -> Image.Image:
    """Lay out blocks below one another, each with its panels in rows of at most `columns`."""
    widest = max(panel.picture.width for block in blocks for panel in block.panels)
    across = max(min(columns, len(block.panels)) for block in blocks)
    rows = [_in_rows(block.panels, columns) for block in _without_repeats(blocks)]
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


def _without_repeats(blocks: Sequence[Block]) -> list[Block]:
    """Leave out the lines below a panel that are also below the first block's panel in the same place."""
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
    """Draw the heading and the legends; return where they end."""
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
    """Draw the colour scale and what stands at its ends."""
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
