# A run's books: summary.json, manifest.jsonl and the lock; what is written there, and what it takes to go on.
"""The two files that describe a run, and the rules for touching them."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from featx import files
from featx.errors import BusyError, FeatxError, OutputError, UsageError
from featx.formats import Reader
from featx.naming import KEYS, MANIFEST, SUFFIXES, SUMMARY, UNFINISHED, VECTORS, is_inside, to_path, to_text
from featx.records import OUTPUT_OPTIONS, ModelRequest, Outcome, Stat, many_records

FORMAT = 1

# What every summary has.
FACTS: dict[str, Any] = {
    "state": str,
    "model": str,
    "weights": dict,
    "levels": list,
    "input": dict,
    "recipe": dict,
    "counts": dict,
    "seconds": int | float,
}

# The one file among what is unfinished that is kept until it is dealt with: the images that a run ended with.
KEPT = "suspects"

_DECODE = json.JSONDecoder().decode

ANEW = "Choose another folder with --output, or start anew with --overwrite"
ROOM = "Make room or mend the disk, and run the same command to resume"


class Hold:
    """A run's folder that this process alone may change.

    Attributes
    ----------
    unfinished : Path
        The folder inside it for what is not complete yet.
    """

    def __init__(self, folder: Path, handle: int) -> None:
        self.unfinished = folder / UNFINISHED
        self._folder, self._handle = folder, handle
        self._begun = False

    def begin(self, *, anew: bool = False) -> None:
        """Clear up what an earlier call left unfinished, or all that it left; nothing is touched before.

        Raises
        ------
        OutputError
            If the folder cannot be written.
        """
        try:
            self._sweep()
            if anew:
                self._remove_outputs()
            else:
                _drop_torn_line(self._handle)
            files.make_folders(self.unfinished)
        except OSError as error:
            raise OutputError(f"{self._folder} cannot be written: {error.strerror}", ROOM) from error
        self._begun = True

    def append(self, line: bytes) -> None:
        """Add a line to the manifest, whole or not at all."""
        end = os.fstat(self._handle).st_size
        try:
            files.write_all(self._handle, [line])
        except OSError:
            os.ftruncate(self._handle, end)
            raise

    def save(self, summary: dict[str, Any]) -> None:
        """Replace the summary, after the manifest is safe."""
        text = json.dumps(summary, indent=2) + "\n"
        files.synchronise(self._folder / MANIFEST)
        files.write_atomically(self._folder / SUMMARY, [text.encode()], self.unfinished / SUMMARY)

    def drop(self, keys: Collection[str]) -> None:
        """Take the lines of some keys, and those that cannot be read, out of the manifest.

        The file is replaced by one that is held before it has its name.
        """
        parsed = ((text, _parsed(text)) for text in _texts(self._folder))
        temporary = self.unfinished / MANIFEST
        files.write(temporary, (text for text, line in parsed if line and line["key"] not in keys))
        handle = os.open(temporary, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            files.settle({temporary: self._folder / MANIFEST})
        except BaseException:
            os.close(handle)
            raise
        os.close(self._handle)
        self._handle = handle

    def end(self) -> None:
        """Let go, and leave nothing unfinished behind but what `KEPT` names."""
        if self._begun:
            self._sweep()
            with suppress(OSError):  # it is not empty: there is something to be kept
                self.unfinished.rmdir()
        os.close(self._handle)

    def _sweep(self) -> None:
        for path in self.unfinished.iterdir() if self.unfinished.is_dir() else ():
            if path.name != KEPT:
                path.unlink(missing_ok=True)

    def _remove_outputs(self) -> None:
        """Remove what the manifest names, then its lines: killed in between, it can be done again."""
        root = self._folder.resolve()
        inside: dict[Path, bool] = {}
        for output in {str(line.get("output", "")) for _, line in lines(self._folder)}:
            path = self._folder / output
            if path.parent not in inside:
                # Never out of the folder, whoever wrote the manifest, and whatever the folders in it are links to.
                inside[path.parent] = path.parent.resolve().is_relative_to(root)
            if path.suffix in SUFFIXES and inside[path.parent]:
                path.unlink(missing_ok=True)
            if path.name == VECTORS:
                (self._folder / KEYS).unlink(missing_ok=True)
        os.ftruncate(self._handle, 0)


@contextmanager
def hold(folder: Path, *, make: bool = True) -> Iterator[Hold]:
    """Keep every other run out of a folder, which is made if need be.

    The lock is the kernel's, on the manifest, and ends with the process however it ends.

    Raises
    ------
    OutputError
        If the folder cannot be written, or holds something that is no run.
    BusyError
        If another run holds it.
    """
    require_usable(folder)
    try:
        if make:
            files.make_folders(folder)
        handle = _locked(folder / MANIFEST, os.O_RDWR | os.O_APPEND | (os.O_CREAT if make else 0), fcntl.LOCK_EX)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written: {error.strerror}", "Choose another folder with --output"
        ) from error
    held = Hold(folder, handle)
    try:
        yield held
    finally:
        held.end()


@contextmanager
def look(folder: Path) -> Iterator[None]:
    """Keep runs from changing a folder while it is read; needs no right to write there.

    Raises
    ------
    OutputError
        If it cannot be read.
    BusyError
        If a run holds it.
    """
    try:
        handle = _locked(folder / MANIFEST, os.O_RDONLY, fcntl.LOCK_SH)
    except OSError as error:
        raise OutputError(f"{folder / MANIFEST} cannot be read: {error.strerror}", "Check the folder") from error
    try:
        yield
    finally:
        os.close(handle)


def _locked(path: Path, flags: int, kind: int) -> int:
    """Open and lock a file; once more if it was replaced in the meantime, which would leave a lock on nothing."""
    while True:
        handle = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.stat(path)):  # noqa: PTH116
                return handle
        except BlockingIOError as error:
            os.close(handle)
            raise BusyError(
                f"Another run is working in {path.parent}", "Wait for it, or choose another --output"
            ) from error
        except OSError:
            os.close(handle)
            raise
        os.close(handle)


def lines(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the manifest line by line, each with its position; lines that are no JSON are as good as absent."""
    position = 0
    for text in _texts(folder):
        line = _parsed(text)
        if line is not None:
            yield position, line
        position += len(text)


def unreadable_lines(folder: Path) -> int:
    """Count the lines that `lines` passes over."""
    return sum(1 for _ in _texts(folder)) - sum(1 for _ in lines(folder))


@dataclass(frozen=True, slots=True)
class Known:
    """What has to be remembered of a line to plan with it; a million of them fit into memory.

    Attributes
    ----------
    done : bool
        Whether there are features.
    place : int
        Of the image's path, its hash.
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
    return _of_done(folder, "output")


def digests(folder: Path) -> dict[str, str]:
    """Read the sha256 of the features of every key that has some."""
    return _of_done(folder, "sha256")


@many_records()
def _of_done(folder: Path, fact: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for _, line in lines(folder):
        if line["status"] == "done":
            found[line["key"]] = sys.intern(str(line.get(fact)))
        else:
            found.pop(line["key"], None)
    return found


@many_records()
def known(folder: Path) -> dict[str, Known]:
    """Read the last line of every key in the manifest."""
    found = {}
    for _, line in lines(folder):
        try:
            read = line["input"]
            stat = Stat(read["bytes"], read["mtime_ns"], read.get("sha256", "")) if read else None
            if line["status"] == "done" and is_inside(line["output"]):
                found[line["key"]] = Known(True, hash(line["path"]), stat, line["output"], line["bytes"], "", "")
            else:
                found[line["key"]] = Known(False, hash(line["path"]), stat, "", 0, line["stage"], line["error"])
        except (KeyError, TypeError, AttributeError):  # damaged: done again
            found.pop(line["key"], None)
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

    def enter(self, outcome: Outcome) -> None:
        """Add the line of one image, which must be in place by now; of one that failed nothing stays."""
        try:
            if not outcome.done and outcome.item.alias:
                (self._folder / outcome.item.alias).unlink(missing_ok=True)
            self._hold.append(json.dumps(outcome_to_json(outcome), separators=(",", ":")).encode() + b"\n")
        except OSError as error:
            raise OutputError(f"The manifest in {self._folder} cannot be written: {error.strerror}", ROOM) from error
        self._done += outcome.done
        self._failed += not outcome.done

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
        raise OutputError(f"{folder / SUMMARY} is no summary of featx's", ANEW) from error
    if written_as != FORMAT:
        raise OutputError(
            f"{folder} was written in format {written_as}, which this featx does not know", "Update featx"
        )
    missing = [fact for fact, kind in FACTS.items() if not isinstance(summary.get(fact), kind)]
    if missing:
        raise OutputError(f"{folder / SUMMARY} is damaged: it says nothing of its {missing[0]}", ANEW)
    return _completed(summary)


def _completed(summary: dict[str, Any]) -> dict[str, Any]:
    """Add what runs did not say as long as there were nothing but levels in files of their own."""
    plain = ModelRequest(summary["model"])
    unsaid = {"strides": None, **{option: getattr(plain, option) for option in OUTPUT_OPTIONS}, "format": "npz"}
    arrays = [
        {
            "key": f"level_{level['index']}",
            "shape": [level["channels"], level["height"], level["width"]],
            "dtype": level["dtype"],
        }
        for level in summary["levels"]
    ]
    recipe = {**unsaid, **summary["recipe"]}
    return {"source": "timm", "arrays": arrays, **summary, "recipe": recipe}


def require_summary(folder: Path) -> dict[str, Any]:
    """Read the summary of a folder that has to be a run's.

    Raises
    ------
    FeatxError
        If it has no summary, or none that can be read.
    """
    summary = read_summary(folder)
    if summary is None:
        raise FeatxError(f"{folder} is no run of featx: it has no {SUMMARY}", "Give the folder that holds one")
    return summary


def require_same_recipe(folder: Path, earlier: dict[str, Any] | None, now: dict[str, Any]) -> None:
    """Refuse to mix two recipes in one folder, or to go on where nobody knows any more how features were made.

    Raises
    ------
    OutputError
        Naming every field that differs, then and now.
    """
    if earlier is None:
        if next(lines(folder), None):
            raise OutputError(f"{folder} has no {SUMMARY} that says how its features were made", ANEW)
        return
    flat_then, flat_now = dict(_flat(earlier["recipe"])), dict(_flat(now))
    fields = [name for name in {**flat_then, **flat_now} if flat_then.get(name) != flat_now.get(name)]
    if fields:
        changes = ", ".join(f"{name} {_short(flat_then.get(name))} -> {_short(flat_now.get(name))}" for name in fields)
        raise OutputError(f"{folder} holds features of another recipe ({changes})", ANEW)


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
    if hashed and now and line.stat and (line.done or line.stat.sha256):
        return "stands" if line.stat.sha256 and sha256_of(path) == line.stat.sha256 else "stale"
    same = (now is None) == (line.stat is None) and (
        now is None or line.stat is None or (now.bytes, now.mtime_ns) == (line.stat.bytes, line.stat.mtime_ns)
    )
    return "stands" if same else "stale"


def path_text(path: str) -> str:
    """Write an image's path as the manifest has it: whole, as text."""
    return to_text(path if path.startswith("/") else f"{os.getcwd()}/{path}")  # noqa: PTH109


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
    last = {line["key"]: str(line.get("path")) for _, line in lines(folder) if line["key"] in paths}
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
    paths = {line["key"]: str(line.get("path")) for _, line in lines(folder) if line["key"] in keys}
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


def _texts(folder: Path) -> Iterator[bytes]:
    """The manifest's lines as they stand in the file, without a torn last one."""
    path = folder / MANIFEST
    if path.is_file():
        with path.open("rb") as file:
            yield from (text for text in file if text.endswith(b"\n"))


def _parsed(text: bytes) -> dict[str, Any] | None:
    """Read a line; None if it is none."""
    try:
        line: dict[str, Any] = _DECODE(text.decode())
        return line if isinstance(line["key"], str) and line["status"] in ("done", "failed") else None
    except (ValueError, KeyError, TypeError):
        return None


def _stat_to_json(stat: Stat) -> dict[str, Any]:
    value: dict[str, Any] = {"bytes": stat.bytes, "mtime_ns": stat.mtime_ns}
    return {**value, "sha256": stat.sha256} if stat.sha256 else value


def _drop_torn_line(handle: int) -> None:
    """A line without its newline was being written when something stopped: its image is done again."""
    end = position = os.lseek(handle, 0, os.SEEK_END)
    tail = b""
    while position and b"\n" not in tail:
        step = min(position, 65536)
        position -= step
        tail = os.pread(handle, step, position)
    keep = position + tail.rfind(b"\n") + 1
    if keep < end:
        os.ftruncate(handle, keep)


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"
