# A run's manifest.jsonl: what is written there, what is read of it, and the ledger of a run that is going on.
"""A line an image, and how it is read again whoever wrote it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

import msgspec

from featx.errors import OutputError
from featx.runs.layout import MANIFEST, is_inside
from featx.values import many_records

if TYPE_CHECKING:
    pass


class Read(TypedDict):
    """What an image file was when it was read."""

    bytes: int
    mtime_ns: int
    sha256: NotRequired[str]


class Line(TypedDict):
    """A line of the manifest; of what is not required, an image that is done has one part, one that failed another."""

    key: str
    path: str
    status: Literal["done", "failed"]
    input: Read | None
    size: NotRequired[list[int]]
    frame: NotRequired[dict[str, Any]]
    output: NotRequired[str]
    bytes: NotRequired[int]
    sha256: NotRequired[str]
    stage: NotRequired[str]
    error: NotRequired[str]
    messages: NotRequired[str]


OF_DONE, OF_FAILED = ("size", "frame", "output", "bytes", "sha256"), ("stage", "error")

_DECODE = msgspec.json.Decoder(Line).decode

# Lines that are looked at to see whose a manifest is.
LOOKED_AT = 100


def lines(folder: Path) -> Iterator[tuple[int, Line]]:
    """Read the manifest line by line, each with its position; lines that are not sound are as good as absent."""
    position = 0
    for text, line in texts(folder):
        if line is not None:
            yield position, line
        position += len(text)


def texts(folder: Path) -> Iterator[tuple[bytes, Line | None]]:
    """Read the manifest's lines as they stand in the file, each with what it says; None where it is not sound."""
    for text in _texts(folder):
        try:
            line = parsed(text)
        except ValueError:
            line = None
        yield text, line


def unreadable_lines(folder: Path) -> list[str]:
    """Say what is wrong with the lines that `lines` passes over."""
    faults = []
    for number, text in enumerate(_texts(folder), 1):
        try:
            parsed(text)
        except ValueError as error:
            faults.append(f"line {number}: {error}")
    return faults


def is_ours(folder: Path) -> bool:
    """Whether the manifest was written by featx: one of its first lines is sound, or looks as if it had been."""
    first = list(islice(_texts(folder), LOOKED_AT))
    return not first or any(text.startswith(b'{"key":') for text in first)


def parsed(text: bytes) -> Line:
    """Read a line of the manifest, which anybody could have written.

    Raises
    ------
    ValueError
        If it lacks something, or names an output outside of the folder; the message says what.
    """
    line: Line = _DECODE(text)
    done = line["status"] == "done"
    missing = [name for name in (OF_DONE if done else OF_FAILED) if name not in line]
    if missing:
        raise ValueError(f"there is no {missing[0]}")
    names = line["key"] + line["path"] + (line["output"] if done else "")
    if "\0" in names:
        raise ValueError("there is a NUL in a name")
    if done and not is_inside(line["output"]):
        raise ValueError(f"the output is outside of the folder: {line['output']}")
    return line


def outputs(folder: Path) -> dict[str, str]:
    """Read where the features are of every key that has some."""
    return _of_done(folder, lambda line: line["output"])


def digests(folder: Path) -> dict[str, str]:
    """Read the sha256 of the features of every key that has some."""
    return _of_done(folder, lambda line: line["sha256"])


@many_records()
def _of_done(folder: Path, fact: Callable[[Line], str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for _, line in lines(folder):
        if line["status"] == "done":
            found[line["key"]] = sys.intern(fact(line))
        else:
            found.pop(line["key"], None)
    return found


def _texts(folder: Path) -> Iterator[bytes]:
    """The manifest's lines as they stand in the file, without a torn last one."""
    path = folder / MANIFEST
    try:
        with path.open("rb") as file:
            yield from (text for text in file if text.endswith(b"\n"))
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}", "Check the disk") from error
