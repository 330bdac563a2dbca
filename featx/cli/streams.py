# The standard streams: they survive closed pipes, and what libraries write to the terminal is kept separate.
"""Standard output and standard error of the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from rich.console import Console

from featx import files


class _Steadfast:
    """A stream that silently discards output once its reader is gone."""

    def __init__(self, stream: Any, failures: type[OSError]) -> None:
        self._stream, self._failures = stream, failures

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except self._failures:
            self._let_go()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except self._failures:
            self._let_go()

    def _let_go(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def protect() -> None:
    """Let a run survive the readers of its streams, and make sure that no file is mistaken for a stream."""
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:  # a closed descriptor would go to the next file opened
        pass
    os.close(spare)
    output = sys.stdout or os.fdopen(1, "w")
    messages = sys.stderr or os.fdopen(2, "w")
    for stream in (output, messages):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # A closed pager does not matter; a full disk behind standard output does.
    sys.stdout = _Steadfast(output, BrokenPipeError)
    sys.stderr = _Steadfast(messages, OSError)


def leave(status: int) -> None:
    """End the process without waiting for threads, since one of them may hang."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = status or 1
    os._exit(status)


class CapturedOutput:
    """What libraries write to standard error while it is captured; empty if there is no file to capture it in."""

    def __init__(self, file: BinaryIO | None) -> None:
        self._file = file

    def size(self) -> int:
        """Bytes written so far."""
        return os.fstat(self._file.fileno()).st_size if self._file else 0

    def lines(self) -> list[str]:
        """All of it, each line once."""
        if not self._file:
            return []
        text = os.pread(self._file.fileno(), 1 << 20, 0).decode(errors="replace")
        return list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))


@contextmanager
def captured_libraries() -> Iterator[CapturedOutput]:
    """Redirect what libraries write to descriptor 2 to a file; `sys.stderr` still goes where it went."""
    file = files.nameless()
    if not file:
        yield CapturedOutput(None)
        return
    sys.stderr.flush()
    before, ours = sys.stderr, os.dup(2)
    with file:
        stream = os.fdopen(ours, "w", buffering=1, encoding=before.encoding, errors="backslashreplace")
        sys.stderr = _Steadfast(stream, OSError)
        os.dup2(file.fileno(), 2)
        try:
            yield CapturedOutput(file)
        finally:
            sys.stderr.flush()
            os.dup2(ours, 2)
            sys.stderr = before
            stream.close()


def interject(text: str) -> None:
    """Write a line over a progress bar, and show the cursor again, from a signal handler.

    The handler may interrupt a write to the same stream, so only the operating system's own write is safe.
    """
    try:
        handle = sys.stderr.fileno()
        before = "\r\x1b[K\x1b[?25h" if os.isatty(handle) else ""
        os.write(handle, f"{before}{text}\n".encode())
    except (OSError, ValueError, AttributeError):  # nobody is there to read it
        return


# Width of output to a file or another program: more than any table needs.
WIDE = 1000


def stdout() -> Console:
    """Standard output: as wide as the terminal, or as wide as needed without one."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)


def stderr() -> Console:
    """Standard error, where all messages for people go."""
    return Console(stderr=True, highlight=False)
