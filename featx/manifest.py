# A run's books: summary.json, manifest.jsonl and the lock; what is written there, and what it takes to go on.
"""The two files that describe a run, and the rules for touching them."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from featx.errors import BusyError, OutputError
from featx.files import write_atomically
from featx.records import Outcome, Stat, many_records

FORMAT = 1
SUMMARY, MANIFEST = "summary.json", "manifest.jsonl"
ROOM = "Make room or mend the disk, and run the same command to resume"


@contextmanager
def hold(folder: Path) -> Iterator[BinaryIO]:
    """Make the run's folder if need be, and keep every other run out of it.

    Yields
    ------
    BinaryIO
        The manifest, open for appending; its lock ends with it, or with the process.

    Raises
    ------
    OutputError
        If the folder cannot be written, or holds something that is no run.
    BusyError
        If another run holds it.
    """
    require_usable(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        manifest = (folder / MANIFEST).open("a+b")
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written: {error.strerror}", "Choose another folder with --output"
        ) from error
    with manifest:
        try:
            fcntl.flock(manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(f"Another run is working in {folder}", "Wait for it, or choose another --output") from error
        _drop_torn_line(manifest)
        yield manifest


def lines(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the manifest line by line, each with its position; lines that are no JSON are as good as absent."""
    path = folder / MANIFEST
    if not path.is_file():
        return
    decode = json.JSONDecoder().decode
    with path.open("rb") as file:
        position = 0
        for text in file:
            try:
                line = decode(text.decode())
                if isinstance(line["key"], str):
                    yield position, line
            except (ValueError, KeyError, TypeError):
                pass
            position += len(text)


@dataclass(frozen=True, slots=True)
class Known:
    """What has to be remembered of a line to plan with it; a million of them fit into memory.

    Attributes
    ----------
    done : bool
        Whether there are features.
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
    stat: Stat | None
    output: str
    bytes: int
    stage: str
    error: str


@many_records()
def known(folder: Path) -> dict[str, Known]:
    """Read the last line of every key in the manifest."""
    found = {}
    for _, line in lines(folder):
        try:
            stat = Stat(line["input"]["bytes"], line["input"]["mtime_ns"]) if line["input"] else None
            if line["status"] == "done":
                found[line["key"]] = Known(True, stat, line["output"], line["bytes"], "", "")
            else:
                found[line["key"]] = Known(False, stat, "", 0, line["stage"], line["error"])
        except (KeyError, TypeError):
            found.pop(line["key"], None)
    return found


class Ledger:
    """The books of a run that is going on: a line an image, and the summary that counts them.

    Parameters
    ----------
    folder : Path
        The run's folder.
    file : binary file
        Its manifest, as `hold` gives it.
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
        file: BinaryIO,
        facts: dict[str, Any],
        done: int,
        failed: int,
        to_do: int,
        earlier: dict[str, Any] | None,
    ) -> None:
        self._folder, self._file, self._facts = folder, file, facts
        self._done, self._failed = done, failed
        self._total = done + failed + to_do
        self._before = float(earlier["seconds"]) if earlier else 0.0
        self._began = time.monotonic()
        self.summary: dict[str, Any] = {}

    @property
    def progress(self) -> str:
        """How far the run has got, in words."""
        return f"{self._done} of {self._total} done"

    def enter(self, outcome: Outcome) -> None:
        """Add the line of one image, in one write."""
        self._done += outcome.done
        self._failed += not outcome.done
        try:
            self._file.write(json.dumps(outcome_to_json(outcome), separators=(",", ":")).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"The manifest in {self._folder} cannot be written: {error.strerror}", ROOM) from error

    def save(self, state: str) -> None:
        """Replace the summary: ``running``, ``stopped`` or ``done``."""
        self.summary = {
            "featx_format": FORMAT,
            "state": state,
            **self._facts,
            "counts": {"done": self._done, "failed": self._failed, "total": self._total},
            "seconds": round(self._before + time.monotonic() - self._began, 3),
        }
        text = json.dumps(self.summary, indent=2) + "\n"
        try:
            write_atomically(self._folder / SUMMARY, lambda file: file.write(text.encode()))
        except OSError as error:
            raise OutputError(f"The summary in {self._folder} cannot be written: {error.strerror}", ROOM) from error


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Read the summary; None where there is none.

    Raises
    ------
    OutputError
        If it is there but not readable, or of a later format.
    """
    try:
        summary = json.loads((folder / SUMMARY).read_bytes())
        written_as = summary["featx_format"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{folder / SUMMARY} is no summary of featx's", "Choose another folder with --output"
        ) from error
    if written_as != FORMAT:
        raise OutputError(
            f"{folder} was written in format {written_as}, which this featx does not know", "Update featx"
        )
    return dict(summary)


def require_same_recipe(folder: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to mix two recipes in one folder.

    Raises
    ------
    OutputError
        Naming every field that differs, then and now.
    """
    flat_then, flat_now = dict(_flat(then)), dict(_flat(now))
    fields = [name for name in {**flat_then, **flat_now} if flat_then.get(name) != flat_now.get(name)]
    if fields:
        changes = ", ".join(f"{name} {_short(flat_then.get(name))} -> {_short(flat_now.get(name))}" for name in fields)
        raise OutputError(
            f"{folder} holds features of another recipe ({changes})",
            "Choose another folder with --output, or remove this one",
        )


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    """Lay out the line of one image."""
    line: dict[str, Any] = {
        "key": outcome.item.key,
        "path": outcome.item.path,
        "status": "done" if outcome.done else "failed",
        "input": asdict(outcome.stat) if outcome.stat else None,
    }
    if not outcome.done:
        return {**line, "stage": outcome.stage, "error": outcome.error}
    return {
        **line,
        "size": list(outcome.size or ()),
        "frame": outcome.frame,
        "output": outcome.output,
        "bytes": outcome.bytes,
        "sha256": outcome.sha256,
    }


def still_valid(folder: str, line: Known, path: str) -> bool:
    """Whether a line can be relied on: its image is unchanged, and its output is there in full."""
    if stat_of(path) != line.stat:
        return False
    if not line.done:
        return True
    try:
        return os.stat(f"{folder}/{line.output}").st_size == line.bytes  # noqa: PTH116
    except OSError:
        return False


def stat_of(path: str) -> Stat | None:
    """Size and time of an image file; None where it cannot be had."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a million Path objects cost more than their files
    except OSError:
        return None
    return Stat(status.st_size, status.st_mtime_ns)


def require_usable(folder: Path) -> None:
    """Refuse a folder that cannot become, or is not, a run's.

    Raises
    ------
    OutputError
        If it is a file, or holds other things.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file", "Choose another folder with --output")
    if folder.is_dir() and not (folder / MANIFEST).exists() and any(folder.iterdir()):
        raise OutputError(f"{folder} holds other things than a run of featx", "Choose another folder with --output")


def _drop_torn_line(manifest: BinaryIO) -> None:
    """A line without its newline was being written when something stopped: its image is done again."""
    end = manifest.seek(0, os.SEEK_END)
    position, tail = end, b""
    while position and b"\n" not in tail:
        step = min(position, 65536)
        position -= step
        manifest.seek(position)
        tail = manifest.read(step)
    keep = position + tail.rfind(b"\n") + 1
    if keep < end:
        manifest.truncate(keep)


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"
