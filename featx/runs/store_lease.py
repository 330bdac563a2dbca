# The lease of a run in an object store: an object that only one process can create, and that keeps other runs out.
"""Holding a run where there are neither locks nor files; see `featx.runs.lease`.

The object is created on the condition that there is none, and written again while the run goes on. A run looks at it
before it writes more lines, so that one whose lease was removed, or ran out while its machine slept, writes none.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from featx.errors import BusyError, OutputError
from featx.runs.layout import LEASE
from featx.runs.lease import EXPIRY, RENEW_EVERY, is_alive, this_process
from featx.stores import Store


class StoreLease:
    """A lease that this process has until `end`.

    Parameters
    ----------
    store : Store
        The run's.

    Attributes
    ----------
    exclusive : bool
        Whether the store lets only one of several processes create an object.

    Raises
    ------
    BusyError
        If another process holds it.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._token = store, uuid.uuid4().hex
        self._ended = threading.Event()
        self._confirmed = clock()
        while not store.create(LEASE, self._content()):
            require_free(store)
            store.remove(LEASE)
        self.exclusive = not store.create(LEASE, b"{}")
        if not self.exclusive:
            store.write(LEASE, self._content())
        threading.Thread(target=self._renew, daemon=True).start()

    def require(self) -> None:
        """Make sure that the lease is still there, and this process's.

        Raises
        ------
        BusyError
            If it is not.
        """
        if not self._is_ours():
            raise BusyError(
                f"The lease {self._store.url}/{LEASE} was removed, or another run has it now",
                "Wait for the other run to end, and run the same command to resume",
            )

    def require_lately(self) -> None:
        """Make sure of it if that was not done lately: between two uploads, this machine may have slept.

        Raises
        ------
        BusyError
            As `require` does.
        """
        if clock() - self._confirmed > 2 * RENEW_EVERY:
            self.require()

    def end(self) -> None:
        """Give it back."""
        self._ended.set()
        with suppress(OutputError):
            if self._is_ours():
                self._store.remove(LEASE)

    def _content(self) -> bytes:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return json.dumps({**this_process(), "time": now, "token": self._token}).encode()

    def _is_ours(self) -> bool:
        now = clock()
        ours = (_holder(self._store) or {}).get("token") == self._token
        if ours:
            self._confirmed = now
        return ours

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_EVERY):
            with suppress(OutputError):  # the store does not answer for the moment
                if self._is_ours():
                    self._store.write(LEASE, self._content())


def clock() -> float:
    """Return seconds that go on while the machine sleeps, where the system counts those."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def require_free(store: Store) -> None:
    """Make sure that no process holds a lease; one of a process of this machine ends with the process.

    Raises
    ------
    BusyError
        If one does.
    """
    holder = _holder(store)
    if holder is None:
        return
    alive = is_alive(holder)
    if alive is None:
        touched = store.modified(LEASE)
        alive = touched is not None and _now(store) - touched < EXPIRY
    if alive:
        who = f"process {holder.get('pid')} on {holder.get('host')}, last heard of at {holder.get('time')}"
        raise BusyError(
            f"Another run is using {store.url} ({who})",
            f"Wait for it, or remove {store.url}/{LEASE} if you are sure that it has ended",
        )


def _holder(store: Store) -> dict[str, Any] | None:
    """Read who holds a lease; nothing is known of one that is damaged."""
    data = store.read(LEASE)
    if data is None:
        return None
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {}


def _now(store: Store) -> float:
    """Return the time by the clock of the store, if it can be written; other machines' may differ."""
    probe = f"{LEASE}-{uuid.uuid4().hex}"
    try:
        store.write(probe, b"")
        return store.modified(probe) or time.time()
    except OutputError:
        return time.time()
    finally:
        with suppress(OutputError):
            store.remove(probe)
