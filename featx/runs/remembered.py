# Archives that a run has seen in full: what is in them is taken from its manifest, as long as they are unchanged.
"""Archives that need not be read again to know what is in them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from msgspec import convert, to_builtins
from msgspec.structs import replace

from featx import paths
from featx.errors import OutputError
from featx.images.archives import MARK, Contents, Listing
from featx.images.locators import stat_of
from featx.runs import manifest
from featx.runs.summary import read_summary
from featx.values import Stat


class Remembered:
    """What a run's summary says of archives, completed by the names in its manifest.

    An archive is remembered if it has the size and time that it had then, and the manifest has as many lines of such an
    archive as it gave. The manifest is read once, as soon as the first archive is asked for.

    Parameters
    ----------
    folder : Path
        The run's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._contents: dict[str, Contents] | None = None
        self._names: dict[str, dict[str, None]] = {}

    def __call__(self, path: str) -> Listing | None:
        """Return the images in an archive; None if it has to be read."""
        if self._contents is None:
            self._contents = self._seen()
            self._read(self._contents)
        whole = paths.path_text(paths.absolute(path))
        names, contents = self._names.pop(whole, {}), self._contents.get(whole)
        if contents is None or len(names) != contents.images or stat_of(path) != _stat_of(contents):
            return None
        return Listing(path, contents, sorted(names, key=lambda name: not name), Counter())  # its own line last

    def _seen(self) -> dict[str, Contents]:
        try:
            summary = read_summary(self._folder) or {}
            return {each.path: each for each in convert(summary.get("archives", []), list[Contents])}
        except (OutputError, ValueError):  # what is wrong with it is reported where the run begins
            return {}

    def _read(self, seen: Mapping[str, Contents]) -> None:
        whole = lru_cache(lambda path: path if paths.is_url(path) else os.path.normpath(path))
        for line in manifest.lines(self._folder) if seen else ():
            place = line.path.find(MARK)
            while place >= 0:
                if (contents := seen.get(whole(line.path[:place]))) is not None:
                    if line.input and replace(line.input, sha256="") == _stat_of(contents):
                        name = paths.to_path(line.path[place + len(MARK) :])
                        self._names.setdefault(contents.path, {})[name] = None
                    break
                place = line.path.find(MARK, place + 1)


def _stat_of(contents: Contents) -> Stat:
    return Stat(contents.bytes, contents.mtime_ns, etag=contents.etag)


def merged(earlier: Mapping[str, Any] | None, found: Iterable[Contents]) -> list[dict[str, Any]]:
    """Return what a summary says of archives: of those found by this call, and of others by earlier ones."""
    kept = {each["path"]: each for each in (earlier or {}).get("archives", [])}
    return list((kept | {each.path: to_builtins(each) for each in found}).values())
