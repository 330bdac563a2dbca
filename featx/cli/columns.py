# Columns: the list of models, printed at once whatever its length; a narrow terminal gets fewer columns.
"""Tables that are too long for rich, which needs half a second for a thousand rows."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from featx.cli.streams import stderr, stdout
from featx.command_options import ListOptions
from featx.text import listed, spacing

# The widest column of a list of models, and the widths it may be cut to: next to others, and as a last resort.
LEVELS, LEVELS_WIDTHS = "stride·channels", (44, 20)

# The same widths for other columns that have to stay.
TEXT_WIDTHS = (100, 10)

GAP = "  "


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    heading : str
        Its name.
    cells : sequence of str
        Its texts, from the top.
    right : bool
        Whether they are aligned to the right.
    leave : int
        Its place, from 1, in the order in which a narrow terminal drops columns; 0 for a column that stays.
    cut : int, int
        Widths its cells may be cut to: next to other columns, and as a last resort. Zeros: never cut.
    """

    heading: str
    cells: Sequence[str]
    right: bool = False
    leave: int = 0
    cut: tuple[int, int] = (0, 0)

    @property
    def width(self) -> int:
        """Width of the widest text."""
        return max(map(len, (self.heading, *self.cells)))

    def cut_to(self, width: int) -> Column:
        """Shorten the cells that are wider, if this column may be cut."""
        if not self.cut[0] or self.width <= width:
            return self
        return replace(self, cells=[f"{text[: width - 1]}…" if len(text) > width else text for text in self.cells])


def print_models(entries: Sequence[dict[str, Any]], wanted: ListOptions) -> None:
    """Print a list of models, and notes on what it shortens; columns that it was filtered or sorted by stay."""
    columns, notes = _columns(entries, wanted), stderr()
    printed = {column.heading: column for column in print_columns(columns)}
    groups = (re.search(r"(\S+)·(\d+) \((\d+)\)", text) for text in printed[LEVELS].cells) if LEVELS in printed else ()
    if group := next(filter(None, groups), None):
        stride, channels, count = group.groups()
        notes.print(f"[dim]{group[0]}: {count} levels of stride {stride} with {channels} channels[/]")
    left_out = [column.heading for column in columns if column.heading not in printed]
    if left_out:
        text = f"{listed(left_out, 'and')} left out: the terminal is {stdout().width} columns wide; --json has all"
        notes.print(f"[dim]{text}[/]", soft_wrap=not notes.is_terminal)


def print_columns(columns: Sequence[Column]) -> list[Column]:
    """Print a table, in full to a file or a pipe, as much as fits on a terminal; return the columns as printed."""
    out = stdout()
    shown = fitting(columns, out.width) if sys.stdout.isatty() else list(columns)
    widths = [column.width for column in shown]

    def line(cells: Sequence[str]) -> str:
        padded = (
            text.rjust(width) if column.right else text.ljust(width)
            for text, width, column in zip(cells, widths, shown, strict=True)
        )
        return _printable(GAP.join(padded).rstrip())

    out.print(f"[bold]{line([column.heading for column in shown])}[/]", soft_wrap=True)
    sys.stdout.write("".join(f"{line(row)}\n" for row in zip(*(column.cells for column in shown), strict=True)))
    return shown


def fitting(columns: Sequence[Column], width: int) -> list[Column]:
    """Return the columns that fit, with cells cut where allowed; columns that stay are kept even if they do not fit."""
    shown = [column for column in columns if not column.leave]
    for column in sorted((each for each in columns if each.leave), key=lambda each: -each.leave):
        more = [each for each in columns if each in shown or each is column]
        if _total([each.cut_to(each.cut[each is column]) for each in more]) <= width:
            shown = more
    for place, column in enumerate(shown):
        excess = _total(shown) - width
        if excess > 0:
            shown[place] = column.cut_to(max(column.width - excess, column.cut[1]))
    return shown


def _total(columns: Sequence[Column]) -> int:
    return sum(column.width for column in columns) + len(GAP) * (len(columns) - 1)


def _columns(entries: Sequence[dict[str, Any]], wanted: ListOptions) -> list[Column]:
    """Make the columns of a list of models, and decide which stay on a narrow terminal."""
    stay = {
        "model": True,
        LEVELS: bool(wanted.strides) or wanted.min_levels is not None,
        "params": wanted.max_parameters is not None or wanted.sort == "params",
        "weights": wanted.pretrained,
        "licence": wanted.license is not None,
        "input": wanted.any_size,
    }
    order = ("input", "licence", "weights", "params", LEVELS)
    cuts = {"model": (0, 0), LEVELS: LEVELS_WIDTHS}
    headings = ("model", LEVELS, "params", "input", "weights", "licence")
    return [
        Column(
            heading,
            cells,
            right=heading in ("params", "input"),
            leave=0 if stay[heading] else order.index(heading) + 1,
            cut=cuts.get(heading, TEXT_WIDTHS if stay[heading] else (0, 0)),
        )
        for heading, *cells in zip(headings, *map(_model_row, entries), strict=True)
    ]


def _model_row(entry: dict[str, Any]) -> tuple[str, ...]:
    tags = entry["pretrained"]
    more = f" +{len(tags) - 1}" if len(tags) > 1 else ""
    return (
        entry["name"],
        _strides_and_channels(entry),
        f"{entry['parameters'] / 1e6:.1f} M",
        f"{entry['input']['height']}x{entry['input']['width']}",
        f"{tags[0]['tag'] or 'yes'}{more}" if tags else "-",
        tags[0]["license"] or "not stated" if tags else "-",
    )


def _strides_and_channels(entry: dict[str, Any]) -> str:
    """One text per stride and width, with the number of levels if more than one."""
    counts: dict[str, int] = {}
    for level in entry["levels"]:
        text = f"{spacing(level['stride']).replace(' ', '')}·{level['channels']}"
        counts[text] = counts.get(text, 0) + 1
    return "  ".join(text if count == 1 else f"{text} ({count})" for text, count in counts.items())


def _printable(text: str) -> str:
    """Fall back to a colon and dots if the terminal cannot show the preferred characters."""
    encoding = sys.stdout.encoding or "ascii"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.replace("·", ":").replace("…", ">").encode(encoding, "replace").decode(encoding)
    return text
