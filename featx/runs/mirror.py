# Mirrors: folders of this machine that stand for runs in object stores, with their summaries and manifests.
"""What makes a run behind a URL look like one in a folder.

The objects of a run are its files, but that nothing can be added to an object: new lines of the manifest come in parts
of their own, ``manifest.parts/000001.jsonl`` and so on, until all of them are put into ``manifest.jsonl``. A mirror has
the whole manifest in one file. Outputs are not in it; `featx.runs.formats` reads and writes those at the store.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from featx import files, stores
from featx.errors import FeatxError, OutputError, StoreError
from featx.paths import is_url
from featx.runs.layout import BASIS, LEASE, MANIFEST, PARTS, SUMMARY
from featx.stores import Store

# How often reading begins again, since the run goes on meanwhile.
TRIES = 5

_PART = re.compile(r"([0-9]{6,})\.jsonl")

_MIRRORS: dict[Path, Mirror] = {}


def mirror_of(folder: Path) -> Mirror | None:
    """Return the mirror that a folder is; None for the folder of a run itself."""
    return _MIRRORS.get(folder)


class Mirror:
    """A folder that stands for a run in a store until `close`.

    Parameters
    ----------
    store : Store
        The run's.
    folder : Path
        The folder, which is there and nobody else's.

    Attributes
    ----------
    threads : Executor
        What uploads outputs.
    check : callable
        Called before each upload; raises an OutputError where there shall be no more.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.threads = stores.threads()
        self.check: Callable[[], None] = lambda: None
        self._seen: tuple[object, ...] = ()
        _MIRRORS[folder] = self

    def __reduce__(self) -> tuple[Callable[..., Mirror], tuple[Store, Path]]:
        """A data loader's worker uses the same folder."""
        return _joined, (self.store, self.folder)

    def close(self) -> None:
        """Begin no more uploads, and make it an ordinary folder again."""
        self.threads.shutdown(wait=False, cancel_futures=True)
        _MIRRORS.pop(self.folder, None)

    def refresh(self) -> None:
        """Make summary and manifest what they are in the store.

        Raises
        ------
        OutputError
            If they cannot be read, or change too fast.
        """
        for _ in range(TRIES):
            parts = part_names(self.store)
            versions = (*map(self.store.version, (SUMMARY, BASIS, MANIFEST)), *parts)
            if versions == self._seen:
                return
            if self._bring(parts):
                self._seen = versions
                return
        raise StoreError(f"{self.store.url} changes while it is read", "Try again when the run has ended")

    def _bring(self, parts: Sequence[str]) -> bool:
        """Fetch summary, basis and manifest; False if parts have been merged meanwhile."""
        for name in (SUMMARY, BASIS, MANIFEST):
            temporary = files.temporary_beside(self.folder / name)
            try:
                if not self.store.fetch(name, temporary):
                    files.remove(self.folder / name)
                    continue
                if name == MANIFEST and parts:
                    with temporary.open("r+b") as file:
                        if not _add(file, self.store, parts):
                            return False
                temporary.replace(self.folder / name)
            finally:
                files.remove(temporary)
        return True


def part_names(store: Store) -> list[str]:
    """Find the parts of a manifest, in their order."""
    found = ((_PART.fullmatch(name), name) for name in store.sizes(PARTS))
    return [f"{PARTS}/{name}" for _, name in sorted((int(match[1]), name) for match, name in found if match)]


def number_of(part: str) -> int:
    """Return the number of a part."""
    return int(Path(part).stem)


def is_own(name: str) -> bool:
    """Whether an object is one that a run keeps beside its outputs."""
    return name in (SUMMARY, BASIS, MANIFEST, LEASE) or name.startswith((f"{PARTS}/", f"{LEASE}-"))


def require_usable(store: Store) -> None:
    """Refuse a place in a store that neither is a run nor can become one.

    Raises
    ------
    OutputError
        If it holds other objects.
    """
    there = store.sizes()
    if SUMMARY not in there and not all(name == PARTS or is_own(name) for name in there):
        raise OutputError(
            f"{store.url} holds objects that are not part of a featx run", "Choose another URL with --output"
        )


def located(place: str | PathLike[str], owner: object) -> tuple[Mirror | None, Path, str]:
    """Find the folder and the name of a run; one behind a URL gets a mirror, which is removed when its owner is gone.

    Raises
    ------
    FeatxError
        If it cannot be read.
    """
    if not is_url(str(place)):
        return None, Path(place), str(place)
    store = Store.of(str(place))
    try:
        folder = Path(tempfile.mkdtemp(prefix="featx-"))
    except OSError as error:
        raise FeatxError(
            f"No writable folder for temporary files: {error.strerror or error}", "Set TMPDIR to a writable folder"
        ) from error
    mirror = Mirror(store, folder)
    weakref.finalize(owner, _remove, mirror, os.getpid())
    mirror.refresh()
    return mirror, folder, store.url


def _joined(store: Store, folder: Path) -> Mirror:
    return mirror_of(folder) or Mirror(store, folder)


def _remove(mirror: Mirror, process: int) -> None:
    if process == os.getpid():  # and not one that was forked
        mirror.close()
        shutil.rmtree(mirror.folder, ignore_errors=True)


def _add(file: BinaryIO, store: Store, parts: Sequence[str]) -> bool:
    """Add parts to a manifest, unless they are at its end already: then their removal was interrupted."""
    with stores.threads() as pool:
        found = list(pool.map(store.read, parts))
    added = b"".join(text for text in found if text)
    file.seek(max(0, file.seek(0, os.SEEK_END) - len(added)))
    if file.read() != added:
        file.write(added)
    return None not in found
