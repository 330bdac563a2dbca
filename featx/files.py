# Files that appear under their name complete or not at all, folders that survive a power cut, and temporary files.
"""Writing files."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

from featx.errors import FeatxError, OutputError

Piece = bytes | memoryview

# Pieces that the system writes at once (IOV_MAX of Linux and macOS), and bytes, since some are made as they are needed.
PIECES, TOGETHER = 1024, 1 << 26

# Errors of file systems that cannot sync: some network and user-space ones, mostly for folders.
UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)

NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


def write(path: Path, pieces: Iterable[Piece]) -> None:
    """Write a file, one piece after the other; it is not safe on the disk before `commit`."""
    handle = os.open(path, NEW, 0o666)
    try:
        write_all(handle, pieces)
    finally:
        os.close(handle)


def write_at(path: Path, position: int, pieces: Iterable[Piece]) -> None:
    """Write into a file that is there, from a position on; a link is not followed."""
    handle = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.lseek(handle, position, os.SEEK_SET)
        write_all(handle, pieces)
    finally:
        os.close(handle)


def cut(path: Path, length: int) -> None:
    """Truncate a file to a length; nothing is ever added, and a link is not followed."""
    handle = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(handle).st_size > length:
            os.ftruncate(handle, length)
    finally:
        os.close(handle)


def write_all(handle: int, pieces: Iterable[Piece]) -> None:
    """Write pieces to an open file, however many calls it takes."""
    for left in _grouped(pieces):
        while left:
            count = os.writev(handle, left)
            while left and count >= len(left[0]):
                count -= len(left.pop(0))
            if count:
                left[0] = left[0][count:]


def _grouped(pieces: Iterable[Piece]) -> Iterator[list[memoryview]]:
    """Group what is written by one call: not too many pieces, and no more bytes than `TOGETHER` and the last one."""
    group: list[memoryview] = []
    size = 0
    for piece in pieces:
        if len(piece):
            group.append(memoryview(piece))
            size += len(piece)
        if len(group) == PIECES or size >= TOGETHER:
            yield group
            group, size = [], 0
    yield group


def write_atomically(path: Path, pieces: Iterable[Piece], temporary: Path | None = None) -> None:
    """Write a file under a temporary name, by default beside it, and give it its own when it is safely on the disk."""
    with complete(path, temporary) as place:
        write(place, pieces)


@contextmanager
def complete(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """Give the place for writing a file, which gets its own name if all went well, and else leaves nothing."""
    place = temporary or temporary_beside(path)
    try:
        yield place
        commit({place: path})
    except BaseException:
        with suppress(OSError):
            place.unlink()
        raise


def temporary_beside(path: Path) -> Path:
    """Return a temporary name, in the same folder, for writing a file before it gets its own."""
    return path.with_name(f".{os.getpid()}-{path.name}.tmp")


def commit(written: dict[Path, Path]) -> None:
    """Give temporary files their names when they, and then the names, are safely on the disk.

    All files are synchronised before the first is renamed, and each folder once: the disk works on them together. Those
    that have got their names are taken out of `written`, of which some may be left if that fails.
    """
    folders = {path.parent for path in written.values()}
    for temporary in written:
        try:
            synchronise(temporary)
        except OSError:
            # Asked again, the kernel would report success, although what could not be written is lost.
            with suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108
            raise
    try:
        for temporary in list(written):
            os.replace(temporary, written[temporary])  # noqa: PTH105 - through this module's `os`, as all that can fail
            del written[temporary]
    finally:
        for folder in folders:
            synchronise(folder)


def require_replaceable(path: Path, is_ours: Callable[[Path], bool], made: str, option: str) -> None:
    """Refuse a path before the work starts, if it cannot be written, or holds what featx did not make.

    Raises
    ------
    OutputError
        If its folder does not exist or takes no files, or it would replace something else.
    """
    if not path.parent.is_dir():
        raise OutputError(f"There is no folder {path.parent}", f"Create it, or choose another {option}")
    if os.path.lexists(path) and not is_ours(path):
        raise OutputError(f"{path} exists and was not {made} by featx", f"Choose another {option}")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path} cannot be written: Permission denied", f"Choose another {option}")


def remove_link(path: Path) -> None:
    """Remove a symbolic link in the place of a folder: featx makes none, and never writes through one."""
    if path.is_symlink():
        os.unlink(path)  # noqa: PTH108


def remove(path: Path) -> None:
    """Remove a file, if it is there."""
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108 - through this module's `os`, as all that can fail


def synchronise(path: Path) -> bool:
    """Wait until a file, or the names in a folder, are safely on the disk; False where the file system cannot tell."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return False
        raise
    finally:
        os.close(handle)
    return True


def make_folders(folder: Path) -> None:
    """Make a folder, and those above it that are missing, and have their names safely on the disk.

    Without that a power cut could take a new folder, and the files in it, though they were synchronised.
    """
    missing = list(takewhile(lambda place: not place.exists(), (folder, *folder.parents)))
    for place in reversed(missing):
        with suppress(FileExistsError):
            os.mkdir(place)  # noqa: PTH102
        synchronise(place.parent)


def inside(root: str, name: str) -> Path:
    """Return the path of a file in a folder, out of which neither its name nor a link may lead.

    Parameters
    ----------
    root : str
        The folder, resolved (`os.path.realpath`).
    name : str
        The file, relative to it.

    Raises
    ------
    OutputError
        If it is elsewhere.
    """
    path = os.path.join(root, name)  # noqa: PTH118 - text, which is cheaper
    if not os.path.realpath(path).startswith(f"{root.rstrip(os.sep)}{os.sep}"):
        raise OutputError(f"{name} points outside {root}", "Check who wrote the manifest, and the links in the folder")
    return Path(path)


def takes_temporaries() -> bool:
    """Whether there is a folder for temporary files."""
    try:
        return bool(tempfile.gettempdir())
    except OSError:
        return False


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a temporary folder.

    Raises
    ------
    FeatxError
        If that cannot be.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="featx-", ignore_cleanup_errors=True)
    except OSError as error:
        raise FeatxError(
            f"No writable folder for temporary files: {error.strerror or error}", "Set TMPDIR to a writable folder"
        ) from error
    with folder as place:
        yield Path(place)


def nameless() -> BinaryIO | None:
    """Open a file that has no name, in memory if no folder takes it; None where there is no such memory either."""
    with suppress(OSError):
        return tempfile.TemporaryFile()
    with suppress(OSError, AttributeError):  # only Linux has it
        return os.fdopen(os.memfd_create("featx"), "w+b")
    return None


def numbered(folder: Path, name: re.Pattern[str]) -> list[tuple[int, Path]]:
    """Return the files of a folder whose names match, by the numbers in these."""
    found = ((name.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in found if match)


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path | None:
    """Return the user's cache folder; None if there is no home folder."""
    place = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache"))  # noqa: PTH111 - a Path raises
    return None if place.parts[:1] == ("~",) else place / "featx"
