# Folding the parts of a manifest into one, whose lines are those of a run in one go; kills lose nothing.
"""What is done to a folder that this process alone may change.

The new manifest gets its name when it is whole and safe on the disk; only then the parts are removed, whose lines it
has. Interrupted in between, the same lines are read twice, and folding again comes to the same.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from featx import files
from featx.collecting import many_records
from featx.runs import manifest, parts
from featx.runs.layout import LEASE, MANIFEST, PARTS, SUMMARY, UNFINISHED
from featx.runs.parts import MERGING, TURN, Texts
from featx.runs.summary import SHARDS, read_summary
from featx.runs.suspects import all_suspects, save_suspects


def rewritten(folder: Path, temporary: Path, pieces: Iterable[bytes], *, locked: bool) -> int:
    """Replace the manifest, and return the new one, open; it is locked before it gets its name."""
    files.write(temporary, pieces)
    handle = os.open(temporary, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    try:
        if locked:
            fcntl.flock(handle, fcntl.LOCK_EX)
        files.commit({temporary: folder / MANIFEST})
    except BaseException:
        os.close(handle)
        raise
    return handle


def fold(folder: Path, *, locked: bool) -> int:
    """Fold the parts into the manifest, and return it, open; nobody else may be writing to any of them."""
    unfinished = folder / UNFINISHED
    if unfinished.is_symlink():  # which featx does not make, and never writes through
        unfinished.unlink()
    files.make_folders(unfinished)
    files.write(folder / PARTS / MERGING, [])
    files.synchronise(folder / PARTS)
    save_suspects(unfinished, all_suspects(folder))
    texts = Texts(folder)
    lines = (manifest.without_number(text)[0] for text in texts.many(_order(texts)))
    handle = rewritten(folder, unfinished / MANIFEST, lines, locked=locked)
    try:
        for part in parts.found(folder).values():
            remove_part(part)
        recount(folder)
        files.remove(folder / PARTS / MERGING)
    except BaseException:
        os.close(handle)
        raise
    return handle


def remove_part(part: Path) -> None:
    """Remove a part: what is unfinished in it, then its manifest, which makes it one."""
    unfinished = part / UNFINISHED
    if unfinished.is_symlink():
        unfinished.unlink()
    for path in unfinished.iterdir() if unfinished.is_dir() else ():
        if not path.is_dir():
            files.remove(path)
    with suppress(OSError):
        unfinished.rmdir()
    for name in (LEASE, MANIFEST):
        files.remove(part / name)
    with suppress(OSError):  # somebody has put something into it
        part.rmdir()


def clear_up(folder: Path) -> None:
    """Remove the folder of parts, if there are none; whoever waits for a turn makes it again."""
    place = folder / PARTS
    if place.is_dir() and not place.is_symlink() and not parts.found(folder):
        files.remove(place / TURN)
        with suppress(OSError):
            place.rmdir()


@many_records()
def _order(texts: Texts) -> list[int]:
    """Return the positions of the lines that count: first those that were there, then those of the parts by number.

    A line that is there already, from a merge that was interrupted, stays where it is. One that is not sound is kept,
    for `featx verify` to show.
    """
    last: dict[str | bytes, tuple[int, int, int]] = {}
    for position, text in texts:
        bare, number = manifest.without_number(text)
        try:
            key: str | bytes = manifest.parsed(text).key
        except ValueError:
            key = bare
        content = hash(bare)
        if key not in last or last[key][2] != content:
            last[key] = (-1 if number is None else number, position, content)
    return [position for _, position, _ in sorted(last.values())]


def recount(folder: Path) -> None:
    """Have the summary say what the manifest does, and forget the shards."""
    summary = read_summary(folder)
    if summary is None or SHARDS not in summary:
        return
    states = {each["state"] for each in summary.pop(SHARDS)["each"].values()}
    counted = manifest.counted(folder)
    processed = counted["done"] + counted["failed"]
    total = max(summary["counts"]["total"], processed)
    summary |= {
        "state": "done" if states == {"done"} and processed == total else "stopped",
        "counts": {"done": counted["done"], "failed": counted["failed"], "total": total},
        "bytes": counted["bytes"],
    }
    text = json.dumps(summary, indent=2) + "\n"
    files.make_folders(folder / UNFINISHED)
    files.write_atomically(folder / SUMMARY, [text.encode()], folder / UNFINISHED / SUMMARY)
    with suppress(OSError):  # there is something else in it
        (folder / UNFINISHED).rmdir()
