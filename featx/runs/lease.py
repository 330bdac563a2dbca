# A lease: a file that keeps other runs out of a folder where the file system has no locks.
"""Holding a folder without the kernel's help.

Some network file systems have no `flock`. There, a file that only one process can create takes its place. The holder
touches it regularly, so that a lease left behind by a dead machine does not look as if it were in use.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from featx.errors import BusyError, first_line

# Seconds between two touches, and after which a lease that was not touched has run out.
RENEW_EVERY, EXPIRY = 20.0, 120.0

# Seconds after which a lease that was away is looked for again.
AGAIN = 1.0


class Lease:
    """A lease that this process has until `end`.

    Parameters
    ----------
    path : Path
        The file.

    Attributes
    ----------
    lost : bool
        Whether another process has taken it away.

    Raises
    ------
    BusyError
        If another process holds it.
    OSError
        If the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._token = path, uuid.uuid4().hex
        self._ended = threading.Event()
        self.lost = False
        while not self._take():
            require_free(path)
            self._set_aside()
        threading.Thread(target=self._renew, daemon=True).start()

    def require(self) -> None:
        """Make sure that nobody has taken the lease away.

        Raises
        ------
        BusyError
            If somebody has.
        """
        if self.lost:
            raise BusyError(f"Another run has taken over {self._path.parent}", "Wait for it to end, and try again")

    def end(self) -> None:
        """Give the folder back."""
        self._ended.set()
        with suppress(OSError, ValueError):
            if _holder(self._path).get("token") == self._token:
                self._path.unlink()

    def _take(self) -> bool:
        content = {**this_process(), "token": self._token}
        try:
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            return False
        try:
            os.write(handle, json.dumps(content).encode())
        except OSError:
            self._path.unlink()
            raise
        finally:
            os.close(handle)
        return True

    def _set_aside(self) -> None:
        """Remove a lease that has run out; only one of several processes succeeds in renaming it."""
        aside = self._path.with_name(f"{self._path.name}-{self._token}")
        with suppress(FileNotFoundError):
            os.rename(self._path, aside)  # noqa: PTH104 - through this module's `os`
            if is_held(aside):  # somebody else was faster, and this is the new one
                with suppress(FileExistsError):
                    os.link(aside, self._path)
            os.unlink(aside)  # noqa: PTH108

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_EVERY) and not self.lost:
            with suppress(OSError):  # the disk does not answer for the moment
                if self._is_ours() or (not self._ended.wait(AGAIN) and self._is_ours()):
                    os.utime(self._path)
                else:
                    self.lost = not self._ended.is_set()

    def _is_ours(self) -> bool:
        """Whether the file still names this process; it is away for a moment while another one looks at it."""
        try:
            return _holder(self._path).get("token") == self._token
        except (FileNotFoundError, ValueError):
            return False


def require_free(path: Path) -> None:
    """Make sure that no process holds a lease.

    Raises
    ------
    BusyError
        If one does.
    """
    if not is_held(path):
        return
    try:
        holder = _holder(path)
        who = f" (process {holder['pid']} on {holder['host']})"
    except (OSError, ValueError, KeyError) as error:
        who = f" ({first_line(error)})"
    raise BusyError(
        f"Another run is using {path.parent}{who}", f"Wait for it, or remove {path} if you are sure that it has ended"
    )


def is_held(path: Path) -> bool:
    """Whether a lease is there and has not run out; one of a process of this machine ends with the process."""
    try:
        touched = path.stat().st_mtime
        holder = _holder(path)
    except FileNotFoundError:
        return False
    except ValueError:  # half written: by somebody who is taking it, or was killed then
        return _now(path) - touched < EXPIRY
    alive = is_alive(holder)
    return _now(path) - touched < EXPIRY if alive is None else alive


def this_process() -> dict[str, object]:
    """Name this process in a lease."""
    return {"host": socket.gethostname(), **_process(os.getpid())}


def is_alive(holder: Mapping[str, object]) -> bool | None:
    """Whether the process that a lease names is there; None if that is on another machine."""
    here = this_process()
    if any(holder.get(name) != here[name] for name in ("host", "boot", "namespace")):
        return None
    return _process(holder.get("pid"))["started"] == holder.get("started") != ""


def _now(path: Path) -> float:
    """Return the time in seconds, by the clock of the file system if it can be written; other machines' may differ."""
    probe = path.with_name(f"{path.name}-{uuid.uuid4().hex}")
    try:
        handle = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError:
        return time.time()
    try:
        return os.fstat(handle).st_mtime
    finally:
        os.close(handle)
        probe.unlink()


def _process(pid: object) -> dict[str, object]:
    """Tell a process from all others, of other machines, containers and times; what is unknown is empty (proc(5))."""
    return {
        "pid": pid,
        "boot": _text(Path("/proc/sys/kernel/random/boot_id").read_text),
        "namespace": _text(lambda: str(Path("/proc/self/ns/pid").readlink())),
        "started": _text(lambda: _started(pid)),
    }


def _started(pid: object) -> str:
    """When a process began; only whether it is there, where the system does not tell."""
    if Path("/proc/self/stat").exists():
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    os.kill(int(str(pid)), 0)
    return "at some time"


def _text(read: Callable[[], str]) -> str:
    try:
        return read().strip()
    except (OSError, IndexError, ValueError):
        return ""


def _holder(path: Path) -> dict[str, object]:
    value = json.loads(path.read_bytes())
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged")  # noqa: TRY004
    return value
