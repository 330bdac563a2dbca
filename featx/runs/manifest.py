# A run's manifest.jsonl: how its lines are written, and read with suspicion.
"""One line per image."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from msgspec import Struct, to_builtins
from msgspec.json import Decoder

from featx.collecting import many_records
from featx.images.frame import Frame
from featx.paths import path_text
from featx.runs.layout import is_inside
from featx.runs.parts import Texts
from featx.sharding import Shard
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
    pooled: dict[str, tuple[int, int]] | None = None
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

# Lines that are looked at to see whose a manifest is.
LOOKED_AT = 100

# An image's number at the end of its line; it cannot be part of a text there, which would end with a quote.
_NUMBER = re.compile(rb',"number":([0-9]{1,18})\}\n\Z')


def encoded(outcome: Outcome, number: int | None = None) -> bytes:
    """Lay out the line of one image; of a shard's with the image's number in the call, by which parts are merged.

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
    for fact in ("levels", "pooled"):
        if sizes := getattr(outcome, fact):
            line[fact] = sizes
    if outcome.boxes is not None:
        line["boxes"] = outcome.boxes
    if outcome.messages:
        line["messages"] = outcome.messages
    if number is not None:
        line["number"] = number
    return json.dumps(to_builtins(line), separators=(",", ":")).encode() + b"\n"


def without_number(text: bytes) -> tuple[bytes, int | None]:
    """Return a line as a run has it that is not divided into shards, and the image's number, if it had one."""
    found = _NUMBER.search(text)
    return (text[: found.start()] + b"}\n", int(found[1])) if found else (text, None)


def lines(folder: Path) -> Iterator[Line]:
    """Read the manifest line by line, skipping damaged lines."""
    for _, line in texts(Texts(folder)):
        if line:
            yield line


def texts(found: Texts) -> Iterator[tuple[int, Line | None]]:
    """Read the manifest's lines, each by its position and as a value; None where it is not sound."""
    for position, text in found:
        try:
            line = parsed(text)
        except ValueError:
            line = None
        yield position, line


def unreadable_lines(folder: Path) -> list[str]:
    """Say what is wrong with the lines that `lines` passes over."""
    faults = []
    found, numbers = Texts(folder), Counter[Path]()
    for position, text in found:
        path = found.place_of(position)
        numbers[path] += 1
        try:
            parsed(text)
        except ValueError as error:
            faults.append(f"{path.relative_to(folder)} line {numbers[path]}: {error}")
    return faults


def is_ours(folder: Path) -> bool:
    """Whether the manifest was written by featx: one of its first lines is sound, or looks as if it had been."""
    first = list(islice(Texts(folder), LOOKED_AT))
    return not first or any(text.startswith(b'{"key":') for _, text in first)


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


def has_lines(folder: Path) -> bool:
    """Whether there is a sound line."""
    return next(lines(folder), None) is not None


@many_records()
def counted(folder: Path, shard: Shard | None = None) -> dict[str, int]:
    """Count what is done and failed by the manifest without its parts, of all keys or a shard's, and their bytes."""
    sizes: dict[str, int] = {}
    for _, line in texts(Texts(folder, with_parts=False)):
        if line and (shard is None or shard.has(line.key)):
            sizes[line.key] = line.bytes if isinstance(line, Done) else -1
    failed = sum(size < 0 for size in sizes.values())
    return {"done": len(sizes) - failed, "failed": failed, "bytes": sum(sizes.values()) + failed}


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
