# Locks on a run's folder: which folders can be a run's, who may change one, and what is unfinished in it.
"""Other programs' files are left alone, and other runs kept out."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any

from featx import files
from featx.errors import ROOM, OutputError
from featx.runs import formats, manifest, parts
from featx.runs.basis import Basis
from featx.runs.flock import in_turn, open_alone, open_locked, require_no_shards
from featx.runs.folding import clear_up, fold, rewritten
from featx.runs.layout import BASIS, KEPT, KEYS, LEASE, MANIFEST, OF_WORKER, PARTS, SUMMARY, UNFINISHED, VECTORS
from featx.runs.lease import Lease, require_free
from featx.runs.summary import ELSEWHERE, read_summary, write_summary

# What may lie in a folder before the first image is done.
EMPTY = {MANIFEST, UNFINISHED, LEASE, PARTS, BASIS}

# What the folder of a worker is called before it is removed.
ENDED = "ended-"


class LockedFolder:
    """A run's folder that this process alone may change.

    Attributes
    ----------
    unfinished : Path
        The folder inside it for what is not complete yet.
    notes : list of str
        What the file system cannot do, and what that means.
    binding : bool
        Whether the summary binds a call even though the run may have no line yet.
    """

    def __init__(self, folder: Path, handle: int, lease: Lease | None, home: Path | None = None) -> None:
        self._folder, self._handle, self._lease = folder, handle, lease
        self._home = home or folder  # of the manifest
        self.unfinished = self._home / UNFINISHED
        self.notes: list[str] = []
        self.binding = False
        self._root = os.path.realpath(folder)
        self._begun = False
        if lease:
            self.notes.append(f"{folder} is on a file system without locks: the file {LEASE} keeps other runs out")

    def begin(self, *, from_scratch: bool = False) -> None:
        """Remove what an earlier call left unfinished or, from scratch, all that it left; nothing is touched before.

        Raises
        ------
        OutputError
            If the folder cannot be written.
        """
        try:
            self._sweep()
            self._fold()
            if from_scratch:
                self._remove_outputs()
            else:
                _drop_torn_line(self._handle)
            files.make_folders(self.unfinished)
            if not files.synchronise(self._folder):
                self.notes.append(
                    f"{self._folder} is on a file system that cannot confirm that names are safe on the disk: "
                    "after a power cut, the last images may need to be computed again"
                )
        except OSError as error:
            raise OutputError(f"{self._folder} cannot be written: {error.strerror}", ROOM) from error
        self._begun = True

    def append(self, lines: bytes) -> None:
        """Add lines to the manifest, all of them or none."""
        self._require_lease()
        end = os.fstat(self._handle).st_size
        try:
            files.write_all(self._handle, [lines])
        except OSError:
            os.ftruncate(self._handle, end)
            raise

    def save(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Replace the summary, after the manifest is safe, and return it."""
        self._require_lease()
        files.synchronise(self._folder / MANIFEST)
        write_summary(self._folder, summary, self.unfinished)
        return summary

    def keep(self, basis: Basis) -> None:
        """Put the components that maps are projected on into the folder, before the first of them.

        Raises
        ------
        OutputError
            If they cannot be written.
        """
        self._require_lease()
        basis.save(self._folder, self.unfinished)

    def drop(self, keys: Collection[str]) -> None:
        """Take the lines of some keys, and those that cannot be read, out of the manifest."""
        self._require_lease()
        texts = parts.Texts(self._folder)
        kept = [position for position, line in manifest.texts(texts) if line and line.key not in keys]
        temporary = self.unfinished / MANIFEST
        self._take(rewritten(self._folder, temporary, texts.many(kept), locked=not self._lease))

    def remove(self, output: str) -> None:
        """Remove an output of one image; nothing else, and nothing outside the folder, whatever a manifest says."""
        self._require_lease()
        with suppress(FileNotFoundError, NotADirectoryError):
            if Path(output).suffix in formats.SUFFIXES:
                folder, name = os.path.split(output)
                parent = files.inside(self._root, folder) if folder else self._root
                os.unlink(os.path.join(parent, name))  # noqa: PTH108, PTH118

    def end(self) -> None:
        """Unlock the folder, and leave nothing unfinished behind but what `KEPT` names."""
        with suppress(OSError):  # a disk that cannot be written any more; the next call clears up
            if self._begun and not (self._lease and self._lease.lost):
                self._sweep()
                self.unfinished.rmdir()  # unless there is something to be kept
        os.close(self._handle)
        if self._lease:
            self._lease.end()

    def _fold(self) -> None:
        """Fold what shards have written into the manifest."""
        if parts.found(self._folder) or parts.is_merging(self._folder):
            self._take(fold(self._folder, locked=not self._lease))
        if (self._folder / PARTS).is_dir():
            with in_turn(self._folder):
                clear_up(self._folder)

    def _take(self, handle: int) -> None:
        """Go on with a new manifest."""
        os.close(self._handle)
        self._handle = handle

    def _require_lease(self) -> None:
        if self._lease:
            self._lease.require()

    def _sweep(self) -> None:
        """Remove temporary files."""
        for path in self.unfinished.iterdir() if self.unfinished.is_dir() else ():
            if path.name.endswith(OF_WORKER) and path.is_dir() and not path.is_symlink():
                remove_workers_folder(path)
            elif path.name != KEPT and not path.is_dir():
                path.unlink(missing_ok=True)

    def _remove_outputs(self) -> None:
        """Remove what the manifest names, then its lines: killed in between, it can be done again."""
        outputs = {line.output for line in manifest.lines(self._folder) if isinstance(line, manifest.Done)}
        self._remove_all(outputs)
        for folder in sorted({parent for output in outputs for parent in PurePath(output).parents}, reverse=True):
            with suppress(OSError, OutputError):  # it holds something else, or is elsewhere
                files.inside(self._root, str(folder)).rmdir()
        files.remove(self._folder / BASIS)
        os.ftruncate(self._handle, 0)

    def _remove_all(self, outputs: Collection[str]) -> None:
        for output in outputs:
            with suppress(OutputError):  # it leads elsewhere, and is not ours
                self.remove(output)
            if output == VECTORS:
                files.remove(self._folder / KEYS)


def remove_workers_folder(path: Path) -> None:
    """Remove what a worker on another machine has not finished; one that still runs can put nothing in place any more.

    It gets another name first: under its own, the worker could begin new files while it is emptied.
    """
    ended = path if path.name.startswith(ENDED) else path.with_name(f"{ENDED}{path.name}")
    with suppress(FileNotFoundError):
        path.rename(ended)
        shutil.rmtree(ended)


@contextmanager
def exclusive(folder: Path, *, make: bool = True) -> Iterator[LockedFolder]:
    """Lock a folder, which is made if need be, against every other run.

    The lock is the kernel's, on the manifest, and ends with the process however it ends; a `Lease` where the file
    system has no locks.

    Raises
    ------
    OutputError
        If the folder cannot be written, or holds something that is not a run.
    BusyError
        If another run has locked it.
    """
    require_usable(folder)
    with ExitStack() as stack:
        try:
            if make:
                files.make_folders(folder)
            held = LockedFolder(folder, *open_alone(folder / MANIFEST, make=make))
            stack.callback(held.end)
            files.remove_link(held.unfinished)
        except OSError as error:
            raise OutputError(
                f"{folder} cannot be written: {error.strerror}", "Choose another folder with --output"
            ) from error
        require_no_shards(folder)
        yield held


@contextmanager
def shared(folder: Path) -> Iterator[None]:
    """Lock a folder against changes while it is read; takes no right to write there.

    Raises
    ------
    OutputError
        If it cannot be read.
    BusyError
        If a run has locked it.
    """
    try:
        handle, locked = open_locked(folder / MANIFEST, os.O_RDONLY, fcntl.LOCK_SH)
        if not locked:
            require_free(folder / LEASE)
    except OSError as error:
        raise OutputError(f"{folder / MANIFEST} cannot be read: {error.strerror}", "Check the folder") from error
    try:
        require_no_shards(folder)
        yield
    finally:
        os.close(handle)


def require_usable(folder: Path) -> None:
    """Refuse a folder that neither is a run, by its summary and its manifest, nor can become one.

    Raises
    ------
    OutputError
        If it is a file, or holds other files.
    """
    try:
        if not os.path.lexists(folder):
            _require_parent(folder)
            return
        if not folder.is_dir():
            kind = "a file" if folder.is_file() else "not a folder"
            raise OutputError(f"{folder} is {kind}", "Choose another folder with --output")
        summary = read_summary(folder)
        if summary is None and (fault := _fault_without_summary(folder)):
            summary = read_summary(folder)  # which another run may have just written, with its first files
            if summary is None:
                raise OutputError(f"{folder} {fault}", ELSEWHERE)
        if summary is None:
            return
        if not (folder / MANIFEST).exists():
            raise OutputError(f"The run {folder} no longer has its {MANIFEST}", ELSEWHERE)
        if not manifest.is_ours(folder):
            raise OutputError(f"{folder / MANIFEST} was written by another program", ELSEWHERE)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be read: {error.strerror}", "Choose another folder with --output"
        ) from error


def _fault_without_summary(folder: Path) -> str:
    """Say why a folder without a summary cannot become a run; empty if it can."""
    if any(map(_has_content, parts.manifests(folder))):
        return f"has a {MANIFEST} but no {SUMMARY} from featx"
    if any(path.name not in EMPTY for path in folder.iterdir()):
        return "holds files that are not part of a featx run"
    return ""


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def _require_parent(folder: Path) -> None:
    """Refuse a folder that would lie in a file."""
    above = next(parent for parent in folder.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise OutputError(f"{folder} cannot be written: {above} is not a folder", "Choose another one with --output")


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
