# Suspects: what was being read when a run ended without warning, by a crash or a kill.
"""Marks in a file that outlives the process that makes them.

An image that a run was reading when it ended is a suspect: the next run reads it in a separate process.
"""

from __future__ import annotations

import os
import struct
import weakref
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from featx import files
from featx.errors import OutputError
from featx.images.locators import exists
from featx.paths import path_text, to_path
from featx.runs import manifest, parts
from featx.runs.layout import KEPT, UNFINISHED
from featx.runs.planning import Plan
from featx.values import Item

MARKS, SLOTS, SLOT = "reading", 128, 4096


class Marks:
    """What is being read, in a file: what was written stays there even if this process is killed.

    Parameters
    ----------
    folder : Path
        The run's unfinished folder.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / MARKS
        try:
            self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}", "Choose another --output") from error
        # Not before the last thread is done with it: one that hung may write its mark much later.
        weakref.finalize(self, os.close, self._handle)
        self._free = deque(range(SLOTS))

    def enter(self, item: Item) -> int | None:
        """Mark an image; returns the slot for `leave`."""
        try:
            slot = self._free.popleft()
        except IndexError:  # as many images hang
            return None
        content = _content(mark_of(item), path_text(item.path).encode())
        self._put(slot, struct.pack("<H", len(content)) + content)
        return slot

    def leave(self, slot: int | None) -> None:
        """Take a mark away."""
        if slot is not None:
            self._put(slot, bytes(2))
            self._free.append(slot)

    def _put(self, slot: int, data: bytes) -> None:
        with suppress(OSError):  # a full disk will be noticed where it matters
            os.pwrite(self._handle, data, slot * SLOT)


def read_suspects(folder: Path) -> dict[bytes, bytes]:
    """Read which images were being read when a run ended without warning, and which were suspects before.

    Returns
    -------
    dict of bytes to bytes
        The images' marks, and their paths; a path that was too long to be kept is empty.
    """
    data, kept = _read(folder / MARKS), _read(folder / KEPT)
    slots = (data[start : start + SLOT] for start in range(0, len(data) - 1, SLOT))
    contents = {slot[2 : 2 + struct.unpack_from("<H", slot)[0]] for slot in slots} - {b""}
    with suppress(ValueError):
        contents.update(bytes.fromhex(content) for content in kept.decode(errors="replace").split())
    return {mark: path for mark, _, path in (content.partition(b"\0") for content in contents)}


def all_suspects(folder: Path) -> dict[bytes, bytes]:
    """Read the suspects of a run and of all of its shards."""
    homes = (folder, *parts.found(folder).values())
    return {mark: path for home in homes for mark, path in read_suspects(home / UNFINISHED).items()}


def marks_of(items: Iterable[Item]) -> frozenset[bytes]:
    """Return the marks of images."""
    return frozenset(map(mark_of, items))


def save_suspects(folder: Path, found: Mapping[bytes, bytes]) -> None:
    """Save the suspects for the next run; those of `read_suspects` before their marks are removed.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """
    try:
        if found:
            files.make_folders(folder)
            text = "".join(f"{_content(mark, path).hex()}\n" for mark, path in sorted(found.items()))
            files.write_atomically(folder / KEPT, [text.encode()])
        else:
            (folder / KEPT).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}", "Choose another --output") from error


def _content(mark: bytes, path: bytes) -> bytes:
    """Put an image's mark and path together; a path that does not fit is left out."""
    whole = mark + b"\0" + path
    return whole if len(whole) <= SLOT - 2 else mark


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def mark_of(item: Item) -> bytes:
    """Return the mark of an image."""
    return mark_of_key(item.key)


def mark_of_key(key: str) -> bytes:
    """Return the mark of the image with a key: as much of the key as fits."""
    return key.encode()[: SLOT - 2]


def pending_suspects(unfinished: Path, output: Path, plan: Plan) -> dict[bytes, bytes]:
    """Return the suspects, and save them, without those that have a line by now or are gone."""
    found = all_suspects(output)
    if not found:
        return found
    to_do = marks_of(plan.to_do)
    if unfinished.parent != output:  # those of the whole run that are not a shard's are left to others
        own = read_suspects(unfinished)
        found = {mark: path for mark, path in found.items() if mark in own or mark in to_do}
    recorded = {mark_of_key(line.key) for line in manifest.lines(output)}
    pending = {
        mark: path
        for mark, path in found.items()
        if mark in to_do or (mark not in recorded and (not path or exists(to_path(path.decode(errors="replace")))))
    }
    save_suspects(unfinished, pending)
    return pending
