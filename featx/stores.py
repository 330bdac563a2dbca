# Object stores: objects that appear whole, read, listed and created by their names; every failure is one of featx's.
"""Where ``s3://bucket/run`` and other URLs lead, through fsspec."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from featx.errors import FeatxError, StoreError, UsageError, first_line
from featx.filesystems import file_system, path_in, version_in
from featx.paths import protocol_of, require_plain_url, without_query

# File systems of fsspec that write a file in its place, where half of it can be seen.
IN_PLACE = {
    *("arrow_hdfs", "dbfs", "ftp", "ftps", "hdfs", "sftp", "smb", "ssh", "tar", "webdav"),
    *("webdavs", "webhdfs", "zip"),
}

# Requests at the same time.
REQUESTS = 16


@dataclass(frozen=True, slots=True)
class Store:
    """Objects whose names begin with a URL.

    Attributes
    ----------
    url : str
        Without a slash at its end.
    """

    url: str

    @classmethod
    def of(cls, url: str) -> Store:
        """Make sure of a URL: it has no password in it, which everyone would see who sees the command."""
        require_plain_url(url)
        return cls(url.rstrip("/"))

    @property
    def protocol(self) -> str:
        """What comes before ``://``."""
        return protocol_of(self.url)

    @property
    def _system(self) -> Any:
        return file_system(self.url)

    def _path(self, name: str) -> str:
        return path_in(f"{self.url}/{name}" if name else self.url)

    def require_whole_objects(self) -> None:
        """Refuse a file system on which a file that is being written can be seen.

        Raises
        ------
        UsageError
            If it is one.
        """
        if self.protocol in IN_PLACE:
            raise UsageError(
                f"{self.protocol}:// is no object store, and runs are not written to such URLs",
                "Write to a folder, and copy that",
            )

    def read(self, name: str) -> bytes | None:
        """Return an object; None if there is none."""
        with self._failing("read", name):
            try:
                data: bytes = self._system.cat_file(self._path(name))
            except FileNotFoundError:
                return None
            return data

    def fetch(self, name: str, path: Path) -> bool:
        """Write an object to a file; False if there is none."""
        with self._failing("read", name):
            try:
                self._system.get_file(self._path(name), str(path))
            except FileNotFoundError:
                return False
            return True

    def write(self, name: str, data: bytes) -> None:
        """Make or replace an object."""
        with self._failing("written", name):
            self._system.pipe_file(self._path(name), data)

    def upload(self, path: Path, name: str) -> None:
        """Make an object of a file, or replace one."""
        with self._failing("written", name):
            self._system.put_file(str(path), self._path(name))

    def create(self, name: str, data: bytes) -> bool:
        """Make an object unless there is one; returns whether it has this content now.

        A request that is sent again, since its answer was lost, finds the object that it has made itself.
        """
        with self._failing("written", name):
            try:
                self._system.pipe_file(self._path(name), data, mode="create")
            except Exception:  # stores say in many ways that there is one
                there = self.read(name)
                if there is None:
                    raise
                return there == data
            return True

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        with self._failing("removed", name), suppress(FileNotFoundError):
            self._system.rm_file(self._path(name))

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Return the bytes of the objects directly in a folder, 0 where unknown, and -1 for the folders in it."""
        with self._failing("listed", folder):
            place = self._path(folder)
            try:
                entries = self._system.ls(place, detail=True)
            except FileNotFoundError:
                return {}
            found = {
                each["name"].rstrip("/").rpartition("/")[2]: -1 if each["type"] == "directory" else each["size"] or 0
                for each in entries
                if each["name"].strip("/") != place.strip("/")
            }
            return {name: size for name, size in found.items() if name}

    def walk(self) -> Iterator[str]:
        """Find all objects, folder by folder."""
        folders = [""]
        while folders:
            folder = folders.pop()
            for name, size in sorted(self.sizes(folder).items()):
                whole = f"{folder}/{name}" if folder else name
                if size < 0:
                    folders.append(whole)
                else:
                    yield whole

    def modified(self, name: str) -> float | None:
        """When an object was written, by the clock of the store; None if there is none."""
        with self._failing("read", name):
            try:
                return float(self._system.modified(self._path(name)).timestamp())
            except FileNotFoundError:
                return None

    def version(self, name: str) -> str:
        """Return a text that changes whenever an object is written; empty if there is none.

        A web server may not tell: then it changes with every call.
        """
        with self._failing("read", name):
            path = self._path(name)
            try:
                facts = self._system.info(path)
            except FileNotFoundError:
                return ""
            try:
                version = version_in(facts) or self._system.modified(path)
            except NotImplementedError:
                version = uuid4()
            return f"{facts.get('size')} {version}"

    @contextmanager
    def _failing(self, done: str, name: str) -> Iterator[None]:
        """Describe what goes wrong; the libraries of stores have no errors in common."""
        try:
            yield
        except FeatxError:
            raise
        except Exception as error:
            where = without_query(f"{self.url}/{name}" if name else self.url)
            raise StoreError(f"{where} cannot be {done}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, NotImplementedError):
        return "its file system cannot do that"
    reason = (error.strerror or first_line(error)) if isinstance(error, OSError) else first_line(error)
    return re.sub(r"[?#][^\s'\"]*", "", reason)  # of a URL in it, whose query may be a secret


def threads() -> ThreadPoolExecutor:
    """Make threads for requests."""
    return ThreadPoolExecutor(REQUESTS, f"store-{threading.get_native_id()}")
