# Columns: a plain table of any length, printed at once and cut off at the terminal's right edge.
"""Tables that are too long for rich, which needs half a second for a thousand rows."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from featx.cli.streams import stdout

# Maximum width of a model's levels in a list on a terminal.
LEVELS_WIDTH = 44


def print_columns(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a plain table of any length at once, cut off at the terminal's right edge; rich would be slow."""
    out = stdout()
    if sys.stdout.isatty():
        rows = [[row[0], _cut(row[1], LEVELS_WIDTH), *row[2:]] for row in rows]
    titles = [heading.lstrip(">") for heading in headings]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    right = [heading.startswith(">") for heading in headings]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if aligned else cell.ljust(width)
            for cell, width, aligned in zip(cells, widths, right, strict=True)
        )
        return "  ".join(padded).rstrip()

    lines = [_cut(line(row), out.width) for row in rows]
    out.print(f"[bold]{_cut(_printable(line(titles)), out.width)}[/]", soft_wrap=True)
    sys.stdout.write("".join(f"{_printable(text)}\n" for text in lines))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _printable(text: str) -> str:
    """Fall back to a colon and dots if the terminal cannot show the preferred characters."""
    encoding = sys.stdout.encoding or "ascii"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.replace("·", ":").replace("…", ">").encode(encoding, "replace").decode(encoding)
    return text
