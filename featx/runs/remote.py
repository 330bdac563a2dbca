# Runs in object stores: written in a folder of this machine, from where finished files and lines are uploaded.
"""Holding a run behind a URL, and adding to it.

Outputs are uploaded by `featx.runs.formats.store`. Their lines follow in parts of the manifest, a few seconds' worth
each; a part is created on the condition that there is none of its name, so that even a run that has lost its lease
without knowing it cannot replace what another one has recorded.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any

from featx import files
from featx.errors import BusyError, FeatxError, OutputError
from featx.paths import is_url
from featx.runs import formats, lock
from featx.runs.basis import Basis
from featx.runs.flock import open_alone
from featx.runs.layout import BASIS, MANIFEST, PARTS, SUMMARY, UNFINISHED, is_inside
from featx.runs.lock import LockedFolder
from featx.runs.mirror import Mirror, mirror_of, number_of, part_names, require_usable
from featx.runs.store_lease import StoreLease, require_free
from featx.stores import Store, threads

# Lines wait for so many seconds, a little longer the longer a run goes on; or until they are so many bytes.
SECONDS, SHARE, LONGEST, BYTES = 2.0, 0.02, 60.0, 1 << 20


class RemoteFolder(LockedFolder):
    """A mirror of a run that this process alone may change; see `featx.runs.lock.LockedFolder`."""

    def __init__(self, mirror: Mirror, handle: int, lease: StoreLease) -> None:
        super().__init__(mirror.folder, handle, None)
        self._mirror, self._store, self._held = mirror, mirror.store, lease
        mirror.check = lease.require_lately
        self._waiting: list[bytes] = []
        self._began = self._since = time.monotonic()
        self._next = max(map(number_of, part_names(self._store)), default=0) + 1
        if not lease.exclusive:
            self.notes.append(
                f"{self._store.url} does not create objects on the condition that they are not there: two runs that "
                "start at the same moment are not kept apart"
            )

    def begin(self, *, from_scratch: bool = False) -> None:
        """See `LockedFolder.begin`; the store gets a manifest if it has none."""
        super().begin(from_scratch=from_scratch)
        if from_scratch or not self._store.version(MANIFEST):
            self._replace()

    def append(self, lines: bytes) -> None:
        """Add lines to the manifest here, and a while later to that of the store."""
        super().append(lines)
        self._waiting.append(lines)
        now = time.monotonic()
        longest = min(LONGEST, SECONDS + SHARE * (now - self._began))
        if now - self._since > longest or sum(map(len, self._waiting)) > BYTES:
            self._flush()

    def save(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Replace the summary, after all lines are in the store; in one object, if the run is done."""
        self._flush()
        if summary["state"] == "done":
            self._fold()
        saved = super().save(summary)
        self._store.upload(self._folder / SUMMARY, SUMMARY)
        return saved

    def keep(self, basis: Basis) -> None:
        """See `LockedFolder.keep`."""
        super().keep(basis)
        self._held.require()
        self._store.upload(self._folder / BASIS, BASIS)

    def drop(self, keys: Collection[str]) -> None:
        """See `LockedFolder.drop`."""
        super().drop(keys)
        self._replace()

    def remove(self, output: str) -> None:
        """Remove an output of one image, and nothing else, whatever a manifest says."""
        if Path(output).suffix in formats.SUFFIXES and is_inside(output):
            self._held.require()
            self._store.remove(output)

    def end(self) -> None:
        """Give the run back."""
        self._mirror.close()
        super().end()
        self._held.end()

    def _fold(self) -> None:
        """Put the parts of the manifest into one object."""
        super()._fold()
        if self._next > 1:
            self._replace()

    def _flush(self) -> None:
        """Upload what waits as a part.

        Raises
        ------
        BusyError
            If another run has taken over.
        """
        self._since = time.monotonic()
        if self._waiting:
            self._held.require()
            if not self._store.create(f"{PARTS}/{self._next:06d}.jsonl", b"".join(self._waiting)):
                raise BusyError(f"Another run has written to {self._store.url}", "Wait for it to end, and try again")
            self._next += 1
            self._waiting.clear()

    def _replace(self) -> None:
        """Replace the manifest by what it is here, then remove its parts.

        The first part goes first: what is left is the end of the manifest, and read twice it says the same.
        """
        self._held.require()
        self._store.upload(self._folder / MANIFEST, MANIFEST)
        for part in part_names(self._store):
            self._store.remove(part)
        self._waiting.clear()
        self._next = 1

    def _remove_all(self, outputs: Collection[str]) -> None:
        self._held.require()
        ours = [name for name in outputs if Path(name).suffix in formats.SUFFIXES and is_inside(name)]
        with threads() as pool:
            for _ in pool.map(self._store.remove, [*ours, BASIS]):
                pass


@contextmanager
def at(place: str | PathLike[str], *, changing: bool = True) -> Iterator[Path]:
    """Make a mirror of a run behind a URL, to change it or only to read it; a run in a folder is there already."""
    if not is_url(str(place)):
        yield Path(place)
        return
    url = Store.of(str(place)).url
    with staged(url) if changing else _mirrored(url) as folder, named(folder, url):
        yield folder


@contextmanager
def _mirrored(url: str) -> Iterator[Path]:
    with files.temporary_folder() as folder:
        mirror = Mirror(Store.of(url), folder)
        try:
            mirror.refresh()
            yield folder
        finally:
            mirror.close()


@contextmanager
def staged(url: str) -> Iterator[Path]:
    """Make a folder in which this process can write a run behind a URL.

    It is the same for every call, so that one that follows a crash knows what was being read; with nothing in it but
    that, and what has not been uploaded yet.

    Raises
    ------
    OutputError
        If the URL holds something else, or cannot be reached, or there is no room for temporary files.
    BusyError
        If another process of this machine is writing to it.
    """
    store = Store.of(url)
    store.require_whole_objects()
    require_usable(store)
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(_own_folder(url))
        except OSError as error:
            raise OutputError(
                f"No writable folder for temporary files: {error.strerror}", "Set TMPDIR to a writable folder"
            ) from error
        made = Mirror(store, folder)
        stack.callback(made.close)
        made.refresh()
        yield folder


@contextmanager
def exclusive(folder: Path, *, make: bool = True) -> Iterator[LockedFolder]:
    """Lock a run against every other; that behind a URL, if the folder is a mirror. See `featx.runs.lock.exclusive`."""
    mirror = mirror_of(folder)
    with ExitStack() as stack:
        if mirror is None:
            yield stack.enter_context(lock.exclusive(folder, make=make))
            return
        lease = StoreLease(mirror.store)
        try:
            mirror.refresh()  # another run may have gone on
            lock.require_usable(folder)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            held = RemoteFolder(mirror, os.open(folder / MANIFEST, flags, 0o666), lease)
        except BaseException:
            lease.end()
            raise
        try:
            yield held
        finally:
            held.end()


@contextmanager
def shared(folder: Path) -> Iterator[None]:
    """Lock a run against changes while it is read; behind a URL, make sure that nobody is changing it."""
    mirror = mirror_of(folder)
    with ExitStack() as stack:
        if mirror is None:
            stack.enter_context(lock.shared(folder))
        else:
            require_free(mirror.store)
        yield


@contextmanager
def named(folder: Path, url: str) -> Iterator[None]:
    """Have errors name a URL instead of the folder that stands for it."""
    try:
        yield
    except FeatxError as error:
        error.message, error.hint = (text.replace(str(folder), url) for text in (error.message, error.hint))
        error.args = (f"{error.message}. {error.hint}" if error.hint else error.message,)
        raise


@contextmanager
def _own_folder(url: str) -> Iterator[Path]:
    """Make and lock the folder for a URL, which belongs to this user alone, and is removed unless it has suspects."""
    own = Path(tempfile.gettempdir()).resolve() / f"featx-{os.getuid()}"
    with suppress(FileExistsError):
        own.mkdir(0o700)
    facts = own.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o022:
        raise OutputError(f"{own} can be written by others", "Remove it, or set TMPDIR to another folder")
    folder = own / hashlib.sha256(url.encode()).hexdigest()[:16]
    alone, handle = folder.with_suffix(".lock"), -1
    while handle < 0:
        with suppress(FileNotFoundError):  # the one who had it has just removed it
            try:
                handle = open_alone(alone)[0]
            except BusyError as error:
                raise BusyError(f"Another run is using {url}", "Wait for it to end, or choose another URL") from error
    try:
        files.make_folders(folder)
        _clear(folder)
        yield folder
    finally:
        _clear(folder)
        with suppress(OSError):  # there are suspects in it
            folder.rmdir()
        files.remove(alone)
        os.close(handle)


def _clear(folder: Path) -> None:
    """Remove what was not uploaded, but not what is unfinished, which `LockedFolder` takes care of."""
    for path in folder.iterdir():
        if not path.is_dir():
            files.remove(path)
        elif path.name != UNFINISHED:
            shutil.rmtree(path, ignore_errors=True)
