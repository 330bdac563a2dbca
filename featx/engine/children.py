# The process that decodes images where they may crash, hang or take too much memory, and what runs in it.
"""Child processes: each decodes one image after another, under limits of time and memory."""

from __future__ import annotations

import ctypes
import json
import math
import multiprocessing
import os
import resource
import signal
import sys
import threading
import warnings
from contextlib import suppress
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import convert, to_builtins

from featx import files
from featx.errors import FeatxError, UnreadableError
from featx.images import decoding, fitting
from featx.images.frame import Frame
from featx.images.pictures import reason_of
from featx.images.placing import Placed, place
from featx.options import Limits
from featx.text import amount_of

# Seconds that a child has to get ready; it loads torch for timm's transform.
START = 120.0

# Characters of libraries' messages kept per image.
MESSAGES = 500

# Seconds between checks on an image that is being read; short, so that time in which the machine slept does not
# count.
LOOK_EVERY = 0.25

# Linux's request for a signal when the parent dies (prctl.h).
PR_SET_PDEATHSIG = 1


class Child:
    """A process that decodes images one after the other, and is replaced when one of them ends it.

    Parameters
    ----------
    config : dict
        The preprocessor's configuration.
    limits : Limits
        Limits for one image.
    hashed : bool
        Whether the files' sha256 is wanted.
    """

    def __init__(self, config: dict[str, Any], limits: Limits, *, hashed: bool) -> None:
        self._arguments = (config, limits, hashed)
        self._limits = limits
        self._process: Any = None
        self._connection: Any = None

    def read(self, locator: str, data: bytes | None = None) -> Placed:
        """Have an image read, or only decoded if its bytes are given; see `featx.engine.isolation.Reader`."""
        if self._process is None:
            self._start()
        try:
            self._connection.send((locator, data))
            if not any(
                self._connection.poll(LOOK_EVERY) for _ in range(math.ceil(self._limits.time_limit / LOOK_EVERY))
            ):
                self.close()
                raise UnreadableError("decode", f"took more than {self._limits.time_limit:g} s (--time-limit)")
            answer = json.loads(self._connection.recv_bytes())
            if "reason" in answer:
                raise UnreadableError(**answer)
            pixels = np.frombuffer(bytearray(self._connection.recv_bytes()), np.uint8).reshape(answer["shape"])
        except (EOFError, OSError, ValueError) as error:
            raise UnreadableError("decode", self._epitaph()) from error
        return Placed(pixels, convert(answer["frame"], Frame), answer["sha256"], answer["messages"])

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.join(1)  # not forever: a read from a dead network disk cannot be killed
            self._connection.close()

    def _start(self) -> None:
        # Forks of this process could find locks held; the fork server has its socket in a temporary folder.
        context: Any = multiprocessing.get_context("forkserver" if files.takes_temporaries() else "spawn")
        context.set_forkserver_preload([__name__])
        self._connection, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, *self._arguments), daemon=True)
        try:
            process.start()
            self._process = process
            theirs.close()
            if self._connection.poll(START) and self._connection.recv_bytes() == b"ready":
                return
        except (EOFError, OSError, RuntimeError) as error:
            reason = str(error) or "it ended at once"
        else:
            reason = "it did not become ready"
        raise FeatxError(
            f"Could not start a process to read images: {reason}",
            "Scripts that call featx need `if __name__ == '__main__':` around it",
        )

    def _epitaph(self) -> str:
        """Say why the child died; the next image gets a new one."""
        process = self._process
        if process is None:
            return "the run ended"
        process.join(1)
        status = process.exitcode
        self.close()
        if status is None or status >= 0:
            return "the decoder gave up"
        name = signal.Signals(-status).name
        return (
            f"the decoder was killed ({name}), perhaps for its memory"
            if name == "SIGKILL"
            else f"the decoder crashed ({name})"
        )


def _serve(pipe: Any, config: dict[str, Any], limits: Limits, hashed: bool) -> None:
    """Read the requested images, in a separate process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when it is enough
    _die_with_parent()
    _limit_memory(limits.memory_limit)
    decoding.lift_pillow_limit()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # metadata, of which nothing is used
    preprocessor = fitting.make(config)
    captured = files.nameless()
    if captured:
        os.dup2(captured.fileno(), 2)
    pipe.send_bytes(b"ready")
    with suppress(EOFError):
        while True:
            _answer(pipe, preprocessor, limits, hashed, captured)


def _answer(pipe: Any, preprocessor: fitting.Preprocessor, limits: Limits, hashed: bool, captured: Any) -> None:
    locator, data = pipe.recv()
    answer: dict[str, Any]
    try:
        placed = place(preprocessor, locator, limits, hashed=hashed, data=data)
        pixels = placed.pixels.tobytes()
        answer = {"shape": placed.pixels.shape, "frame": to_builtins(placed.frame), "sha256": placed.sha256}
        answer["messages"] = "; ".join(filter(None, (placed.messages, _take(captured))))[:MESSAGES]
        head = json.dumps(answer)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one image, the next one is read
        failure = error if isinstance(error, UnreadableError) else UnreadableError("decode", reason_of(error, locator))
        reason = failure.reason
        if isinstance(failure.__cause__ or error, MemoryError):
            reason = f"takes more than {amount_of(limits.memory_limit)} of memory (--memory-limit)"
        answer = {"stage": failure.stage, "reason": reason, "sha256": failure.sha256, "messages": _take(captured)}
        pipe.send_bytes(json.dumps(answer).encode())
        return
    pipe.send_bytes(head.encode())
    pipe.send_bytes(pixels)


def _take(captured: Any) -> str:
    """Read what was written to standard error since last time, as one line, and forget it."""
    if not captured:
        return ""
    captured.seek(0)
    text = captured.read().decode(errors="replace")
    captured.seek(0)
    captured.truncate()
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())[:MESSAGES]


def _limit_memory(most: int) -> None:
    """Limit what this process can still allocate; only Linux enforces that."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        resource.setrlimit(resource.RLIMIT_DATA, (pages * resource.getpagesize() + most, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _die_with_parent() -> None:
    """End when the run does, however it ends, and even in the middle of an image that hangs."""
    if sys.platform == "linux":  # the parent is the fork server, which ends with the run
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (connection.wait([parent.sentinel]), os._exit(1)), daemon=True).start()
