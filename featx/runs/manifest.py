# A run's manifest.jsonl: what is written there, what is read of it, and the ledger of a run that is going on.
"""A line an image, and how it is read again whoever wrote it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

import msgspec

from featx import files
from featx.errors import OutputError, UsageError
from featx.paths import MANIFEST, SUFFIX, here, is_inside, to_path, to_text
from featx.runs.formats import Reader
from featx.runs.summary import FORMAT
from featx.values import Outcome, Stat, many_records

if TYPE_CHECKING:
    from featx.runs.lock import Hold


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

ROOM = "Make room or mend the disk, and run the same command to resume"


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


@dataclass(frozen=True, slots=True)
class Known:
    """What has to be remembered of a line to plan with it; a million of them fit into memory.

    Attributes
    ----------
    done : bool
        Whether there are features.
    place : int
        Of the image's path, as `place_of` gives it.
    stat : Stat or None
        Of the image when it was read.
    output : str
        The file with the features.
    bytes : int
        Its size.
    stage, error : str
        Of a failure.
    """

    done: bool
    place: int
    stat: Stat | None
    output: str
    bytes: int
    stage: str
    error: str


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


@many_records()
def known(folder: Path) -> dict[str, Known]:
    """Read the last line of every key in the manifest."""
    found = {}
    for _, line in lines(folder):
        read, place = line["input"], place_of(line["path"])
        stat = Stat(read["bytes"], read["mtime_ns"], read.get("sha256", "")) if read else None
        if line["status"] == "done":
            found[line["key"]] = Known(True, place, stat, line["output"], line["bytes"], "", "")
        else:
            found[line["key"]] = Known(False, place, stat, "", 0, line["stage"], line["error"])
    return found


class Ledger:
    """The books of a run that is going on: a line an image, and the summary that counts them.

    Parameters
    ----------
    folder : Path
        The run's folder.
    hold : Hold
        The hold on it.
    facts : dict
        What the summary says besides state, counts and seconds.
    done, failed : int
        Images whose lines stand from earlier calls.
    to_do : int
        Images still to come.
    earlier : dict or None
        The summary that an earlier call left.
    """

    def __init__(
        self,
        folder: Path,
        hold: Hold,
        facts: dict[str, Any],
        done: int,
        failed: int,
        to_do: int,
        earlier: dict[str, Any] | None,
    ) -> None:
        self._folder, self._hold, self._facts = folder, hold, facts
        self._done, self._failed = done, failed
        self._total = done + failed + to_do
        self._before = float(earlier["seconds"]) if earlier else 0.0
        self._began = time.monotonic()
        self.summary: dict[str, Any] = {}

    @property
    def progress(self) -> str:
        """How far the run has got, in words."""
        return f"{self._done} of {self._total} done"

    def enter(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Add the lines of images whose outputs are in place; of those that failed nothing stays.

        Returns
        -------
        list of Outcome
            The same, but that an image whose line cannot be written for what is in it has failed.

        Raises
        ------
        OutputError
            If there is no room for all the lines. Then as many are added as find room, and outputs without a line are
            removed: nobody would know them, and their room may be what the other lines need.
        """
        entries = [_line_of(outcome) for outcome in outcomes]
        entered, failure = len(entries), None
        for before, (outcome, _) in zip(outcomes, entries, strict=True):
            if not outcome.done:
                self._remove(before.output or outcome.item.alias)
        while entered:
            try:
                self._hold.append(b"".join(line for _, line in entries[:entered]))
                break
            except OSError as error:
                failure = failure or error
                entered -= 1
                self._remove(entries[entered][0].output)
        self._done += sum(outcome.done for outcome, _ in entries[:entered])
        self._failed += sum(not outcome.done for outcome, _ in entries[:entered])
        if failure:
            raise OutputError(f"The manifest in {self._folder} cannot be written: {failure.strerror}", ROOM)
        return [outcome for outcome, _ in entries]

    def _remove(self, output: str) -> None:
        if output.endswith(SUFFIX):  # rows in a file that others share are cleared away by whoever writes there next
            with suppress(OSError, OutputError):  # what leads elsewhere is none of ours
                self._hold.remove(output)

    def save(self, state: str) -> None:
        """Replace the summary: ``running``, ``stopped`` or ``done``."""
        self.summary = {
            "featx_format": FORMAT,
            "state": state,
            **self._facts,
            "counts": {"done": self._done, "failed": self._failed, "total": self._total},
            "seconds": round(self._before + time.monotonic() - self._began, 3),
        }
        try:
            self._hold.save(self.summary)
        except OSError as error:
            raise OutputError(f"The summary in {self._folder} cannot be written: {error.strerror}", ROOM) from error


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    """Lay out the line of one image."""
    line: dict[str, Any] = {
        "key": outcome.item.key,
        "path": path_text(outcome.item.path),
        "status": "done" if outcome.done else "failed",
        "input": _stat_to_json(outcome.stat) if outcome.stat else None,
    }
    if outcome.done:
        line["size"] = list(outcome.size or ())
        line["frame"] = outcome.frame
        line["output"] = outcome.output
        line["bytes"] = outcome.bytes
        line["sha256"] = outcome.sha256
    else:
        line["stage"], line["error"] = outcome.stage, outcome.error
    if outcome.messages:
        line["messages"] = outcome.messages
    return line


Standing = Literal["stands", "stale", "gone"]


def standing(reader: Reader, key: str, line: Known, path: str, *, hashed: bool = False) -> Standing:
    """Say whether a line can be relied on: its output is there in full, and its image unchanged, or gone."""
    if line.done and not reader.holds(key, line.output, line.bytes):
        return "stale"
    now = stat_of(path)
    if now is None and line.done:
        return "gone"
    if hashed and now and line.stat and line.stat.sha256:
        return "stands" if sha256_of(path) == line.stat.sha256 else "stale"
    same = (now is None) == (line.stat is None) and (
        now is None or line.stat is None or (now.bytes, now.mtime_ns) == (line.stat.bytes, line.stat.mtime_ns)
    )
    return "stands" if same else "stale"


def path_text(path: str) -> str:
    """Write an image's path as the manifest has it: whole, as text."""
    return to_text(path if path.startswith("/") else f"{here()}/{path}")


def place_of(path: str) -> int:
    """Return a number that stands for a whole path, as text, however it is written; links are not followed."""
    return hash(os.path.normpath(path))


def require_same_images(folder: Path, paths: Mapping[str, str]) -> None:
    """Refuse images whose key in the manifest is that of other images, which are still there.

    Parameters
    ----------
    folder : Path
        The run's.
    paths : mapping
        Of keys to the images that are to have them now.

    Raises
    ------
    UsageError
        If there is one.
    """
    last = {line["key"]: line["path"] for _, line in lines(folder) if line["key"] in paths}
    for key, text in last.items():
        now, then = paths[key], to_path(text)
        if os.path.exists(then) and not _same_file(then, now):  # noqa: PTH110
            raise UsageError(
                f"{then} is stored as {key} in {folder}, and {now} would be",
                "Choose another folder with --output, or give the folder that holds both",
            )


def _same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)  # noqa: PTH121
    except OSError:
        return False


def gone(folder: Path, keys: Collection[str]) -> int:
    """Count those of the keys whose images are no longer there."""
    paths = {line["key"]: line["path"] for _, line in lines(folder) if line["key"] in keys}
    return sum(not os.path.exists(to_path(path)) for path in paths.values())  # noqa: PTH110


def stat_of(path: str) -> Stat | None:
    """Size and time of an image file; None where it cannot be had."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a million Path objects cost more than their files
    except (OSError, ValueError):
        return None
    return Stat(status.st_size, status.st_mtime_ns)


def sha256_of(path: str) -> str | None:
    """Hexadecimal sha256 of an image file; None where it cannot be read."""
    try:
        return files.sha256_of(Path(path))
    except OSError:
        return None


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


def _line_of(outcome: Outcome) -> tuple[Outcome, bytes]:
    """Lay out an image's line; one that cannot be written is a failure of the image, not of the run."""
    try:
        return outcome, json.dumps(outcome_to_json(outcome), separators=(",", ":")).encode() + b"\n"
    except (TypeError, ValueError) as error:
        return _line_of(Outcome(outcome.item, outcome.stat, stage="write", error=f"no line can be made: {error}"))


def _stat_to_json(stat: Stat) -> dict[str, Any]:
    value: dict[str, Any] = {"bytes": stat.bytes, "mtime_ns": stat.mtime_ns}
    return {**value, "sha256": stat.sha256} if stat.sha256 else value
