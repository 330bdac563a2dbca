# Looking through remote folders for images, as walking does through those on the disk.
"""Walking buckets and web servers' pages of links."""

from __future__ import annotations

from collections.abc import Iterator

from featx.errors import FeatxError, UnreadableError
from featx.images import remote
from featx.images.walking import Kind, Pattern, Walk
from featx.paths import is_web, path_text, unquoted
from featx.values import Stat


class RemoteWalk(Walk):
    """A walk through a remote folder; see `featx.images.walking.Walk`."""

    def __init__(self, suffix: str = "") -> None:
        super().__init__(suffix)
        self._stats: dict[str, Stat] = {}

    def images(self, folder: str, name: str, pattern: Pattern) -> Iterator[tuple[str, str]]:
        """Find the images and archives that a pattern wants; names from the web are without its escapes."""
        for key, url in super().images(folder, name, pattern):
            yield unquoted(key) if is_web(url) else key, url

    def stat_of(self, path: str) -> Stat | None:
        """Return what the listing said of a file that was just found."""
        return self._stats.pop(path, None)

    def _entries(self, folder: str) -> Iterator[tuple[str, Kind]]:
        self._stats.clear()
        try:
            for name, is_folder, stat in remote.entries(folder):
                if name in ("", ".", ".."):  # which a bucket may have, and no folder
                    self._leave_out(f"{path_text(folder)}/{name}", OSError("not a name"))
                    continue
                if stat:
                    self._stats[f"{folder}/{name}"] = stat
                yield name, Kind.FOLDER if is_folder else Kind.FILE
        except FileNotFoundError as error:
            self._leave_out(path_text(folder), error)
        except UnreadableError as error:
            if error.reason != remote.NO_ACCESS:  # half a listing would pass for all of it
                raise FeatxError(
                    f"{path_text(folder)} cannot be listed: {error.reason}",
                    "Check the network, and run the same command again",
                ) from error
            self._leave_out(path_text(folder), OSError(error.reason))
