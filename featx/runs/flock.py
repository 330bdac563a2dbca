# Files under the kernel's lock, and the turns in which processes change what they share.
"""`flock`, and what takes its place on file systems that have none: see `featx.runs.lease`."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from featx import files
from featx.errors import BusyError
from featx.runs import lease as leases
from featx.runs import parts
from featx.runs.layout import LEASE, MANIFEST, PARTS
from featx.runs.lease import Lease
from featx.runs.parts import TURN

# Errors of file systems that have no locks.
LOCKLESS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)

# Seconds between two looks at whose turn it is, and after which something must be wrong: merging takes minutes at most.
LOOK_EVERY, LONGEST = 0.1, 1800.0


def open_locked(path: Path, flags: int, kind: int) -> tuple[int, bool]:
    """Open and lock a file; once more if it was replaced in the meantime, which would leave a lock on nothing.

    Returns
    -------
    handle : int
        The open file.
    locked : bool
        False where the file system has no locks.

    Raises
    ------
    BusyError
        If another process has locked it.
    """
    while True:
        handle = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.stat(path)):  # noqa: PTH116
                return handle, True
        except BlockingIOError as error:
            os.close(handle)
            raise BusyError(
                f"Another run is using {path.parent}", "Wait for it to end, or choose another folder"
            ) from error
        except OSError as error:
            if error.errno in LOCKLESS:
                return handle, False
            os.close(handle)
            raise
        os.close(handle)


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Wait until no other process changes what the shards of a run share, and keep them from it.

    Raises
    ------
    BusyError
        If that takes far too long.
    OSError
        If the folder cannot be written.
    """
    place, given_up = folder / PARTS, time.monotonic() + LONGEST
    if place.is_symlink():  # which featx does not make, and never writes through
        place.unlink()
    while True:
        try:
            files.make_folders(place)
            handle, locked = open_locked(place / TURN, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
            try:
                lease = None if locked else Lease(place / LEASE)
            except BaseException:
                os.close(handle)
                raise
            break
        except FileNotFoundError:  # the last one out has cleared up
            continue
        except BusyError:
            if time.monotonic() > given_up:
                raise
            time.sleep(LOOK_EVERY)
    try:
        yield
    finally:
        os.close(handle)
        if lease:
            lease.end()
            with suppress(OSError):  # unless everything else in it has been cleared up
                place.rmdir()


def is_locked(part: Path) -> bool:
    """Whether a shard that writes to a part is running."""
    try:
        handle, locked = open_locked(part / MANIFEST, os.O_RDONLY, fcntl.LOCK_SH)
    except BusyError:
        return True
    except FileNotFoundError:
        return False
    os.close(handle)
    return not locked and leases.is_held(part / LEASE)


def require_no_shards(folder: Path, so: str = "") -> None:
    """Refuse a folder that shards are writing to; none can start as long as the whole folder is locked.

    Raises
    ------
    BusyError
        If one is running.
    """
    for shard, part in parts.found(folder).items():
        if is_locked(part):
            what = f"Shard {shard} of {folder} is running"
            raise BusyError(f"{what}, {so}" if so else what, "Wait for the shards to end, or choose another folder")
