# A run's manifest.jsonl: how its lines are written, and read with suspicion.
"""One line per image."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from msgspec import Struct, to_builtins
from msgspec.json import Decoder

from featx.collecting import many_records
from featx.errors import OutputError
from featx.images.frame import Frame
from featx.paths import path_text
from featx.runs.layout import MANIFEST, is_inside
from featx.values import Outcome, Stat


class Done(Struct, frozen=True, gc=False, tag_field="status", tag="done"):
    """The line of an image that has features; see `featx.values.Outcome`."""

    key: str
    path: str
    input: Stat | None
    size: tuple[int, int]
    frame: Frame
    output: str
    bytes: int
    sha256: str
    levels: dict[str, tuple[int, int]] | None = None
    boxes: int | None = None
    messages: str = ""


class Failed(Struct, frozen=True, gc=False, tag_field="status", tag="failed"):
    """The line of an image that has none, and why."""

    key: str
    path: str
    input: Stat | None
    stage: str
    error: str
    messages: str = ""


Line = Done | Failed

_DECODE = Decoder(Line).decode

# Lines that are looked at to see whose a manifest is, and bytes that are read at a time.
LOOKED_AT, BLOCK = 100, 1 << 18


def encoded(outcome: Outcome) -> bytes:
    """Lay out the line of one image.

    Raises
    ------
    TypeError, ValueError
        If there is something in it that JSON has no way to write.
    """
    line: dict[str, Any] = {
        "key": outcome.item.key,
        "path": path_text(outcome.item.path),
        "status": "done" if outcome.done else "failed",
        "input": outcome.stat,
    }
    facts = ("size", "frame", "output", "bytes", "sha256") if outcome.done else ("stage", "error")
    line.update((fact, getattr(outcome, fact)) for fact in facts)
    if outcome.levels:
        line["levels"] = outcome.levels
    if outcome.boxes is not None:
        line["boxes"] = outcome.boxes
    if outcome.messages:
        line["messages"] = outcome.messages
    return json.dumps(to_builtins(line), separators=(",", ":")).encode() + b"\n"


def lines(folder: Path) -> Iterator[Line]:
    """Read the manifest line by line, skipping damaged lines."""
    for text in _texts(folder):
        try:
            yield parsed(text)
        except ValueError:
            continue


def texts(folder: Path) -> Iterator[tuple[bytes, Line | None]]:
    """Read the manifest's lines, each as it is in the file and as a value; None where it is not sound."""
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
    try:
        line: Line = _DECODE(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    output = line.output if isinstance(line, Done) else ""
    if "\0" in line.key or "\0" in line.path or "\0" in output:
        raise ValueError("a name contains a NUL character")
    if not is_inside(output):
        raise ValueError(f"the output is outside the folder: {output}")
    return line


def outputs(folder: Path) -> dict[str, str]:
    """Read where the features are of every key that has some."""
    return _of_done(folder, lambda line: line.output)


def digests(folder: Path) -> dict[str, str]:
    """Read the sha256 of the features of every key that has some."""
    return _of_done(folder, lambda line: line.sha256)


@many_records()
def _of_done(folder: Path, fact: Callable[[Done], str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines(folder):
        if isinstance(line, Done):
            found[line.key] = sys.intern(fact(line))
        else:
            found.pop(line.key, None)
    return found


def _texts(folder: Path) -> Iterator[bytes]:
    """Read the manifest's lines as they are in the file, without a torn last one."""
    path = folder / MANIFEST
    try:
        with path.open("rb", BLOCK) as file:
            for text in file:
                if text.endswith(b"\n"):
                    yield text
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}", "Check the disk") from error
