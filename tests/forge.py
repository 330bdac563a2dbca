# A process that has loaded torch once and forks a run of the real command for every request: thousands in minutes.
"""Reads one JSON request a line, writes one JSON answer a line: what came of the run, or an ``error`` in serving it.

A request has ``arguments`` and ``folder``, perhaps a ``script`` that is run with them in place of the command, and may
have

- ``environment``: variables that are set, or removed where they are null; those that Python itself reads when it starts
  have no effect here;
- ``stdin``: bytes of standard input, as Latin-1;
- ``steps``: what is done to the run while it goes on, see `Step`;
- ``fault`` (see `faults`), ``grace`` (seconds that a signal leaves a run for what it is at), ``limits`` (of resources)
  and ``isolation`` (whether images may be read in processes of their own).
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import io
import json
import multiprocessing
import os
import resource
import signal
import struct
import sys
import tempfile
import termios
import threading
import time
import traceback
import warnings
from contextlib import redirect_stdout, suppress
from multiprocessing import forkserver
from pathlib import Path
from typing import NoReturn

import pandas  # noqa: F401 - before forking, since it takes its time: pyarrow looks for it
import s3fs  # noqa: F401 - the same
import torch
from huggingface_hub import constants
from PIL import Image

from featx.cli import commands
from featx.cli import main as border
from featx.engine import children, stopping
from featx.runs.formats import npy, parquet, safetensors, webdataset, zarr  # noqa: F401 - before forking, since they take their time
from tests.faults import faults
from tests.helpers import HANGS, wait_until


def main() -> None:
    torch.set_num_threads(1)
    warm_up()
    forkserver.set_forkserver_preload([children.__name__])
    assert threading.active_count() == 1
    gc.freeze()
    with tempfile.TemporaryDirectory() as streams:
        for line in sys.stdin:
            try:
                answer = serve(json.loads(line), Path(streams))
            except (AssertionError, OSError, ValueError):  # one test fails; the next ones go on
                answer = {"error": traceback.format_exc()}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


def warm_up() -> None:
    """Run the command once, in this process, for all that is imported and set up on first use."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        Image.new("RGB", (80, 60)).save(f"{folder}/1.png")
        model = ("--model", "test_resnet", "--weights", "random", "--image-size", "64", "--device", "cpu")
        with suppress(SystemExit):
            commands.app(["extract", f"{folder}/1.png", *model, "--quiet", "--output", f"{folder}/out"])
        with suppress(SystemExit):
            commands.app(["verify", f"{folder}/out"])


def serve(request: dict, streams: Path) -> dict:
    if request.get("isolation"):
        require_fork_server()
    (streams / "stdin").write_bytes(request.get("stdin", "").encode("latin-1"))
    steps = [Step(request, *step) for step in request.get("steps", ())]
    terminal = Terminal(*request["terminal"]) if "terminal" in request else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this process has no threads that would be lost
        pid = os.fork()
    if pid == 0:
        try:
            run(request, streams, terminal)
        finally:
            os._exit(1)
    for step in steps:
        step(pid)
    screen = terminal.read() if terminal else ""
    # It gives up waiting by a signal, which interrupts it.
    signal.signal(signal.SIGALRM, lambda *_: os.kill(pid, signal.SIGKILL))
    signal.alarm(HANGS)
    _, status, usage = os.wait4(pid, 0)
    signal.alarm(0)
    return {
        "status": os.waitstatus_to_exitcode(status),
        "megabytes": usage.ru_maxrss / 1e3,
        "stdout": (streams / "stdout").read_text(errors="replace"),
        "stderr": (streams / "stderr").read_text(errors="replace"),
        "screen": screen,
    }


class Terminal:
    """A terminal of a size, in characters, that a command is run in."""

    def __init__(self, columns: int, lines: int) -> None:
        self._ours, self._its = os.openpty()
        fcntl.ioctl(self._its, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def take(self) -> None:
        """Make it this process's own."""
        os.setsid()
        for descriptor in range(3):
            os.dup2(self._its, descriptor)
        sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", closefd=False) for descriptor in (1, 2))

    def read(self) -> str:
        """Return everything that is written to it until nobody has it open."""
        os.close(self._its)
        written = b""
        with suppress(OSError):  # which is how a terminal ends
            while data := os.read(self._ours, 65536):
                written += data
        os.close(self._ours)
        return written.decode()


class Step:
    """Something that is done to a run while it goes on, or waited for, unless the run ends before.

    ``exists PATH``, ``lines NUMBER`` (the manifest has so many more than before), ``pause SECONDS``, ``signal NUMBER``.
    """

    def __init__(self, request: dict, kind: str, value: str | float) -> None:
        self._manifest = Path(request["folder"]) / "out" / "manifest.jsonl"
        self._before = self._count()
        self._kind, self._value = kind, value

    def __call__(self, pid: int) -> None:
        if self._kind == "signal":
            os.kill(pid, int(self._value))
        elif self._kind == "pause":
            time.sleep(float(self._value))
        else:
            there = self._exists if self._kind == "exists" else self._is_longer
            wait_until(lambda: there() or os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT))

    def _exists(self) -> bool:
        return Path(str(self._value)).exists()

    def _is_longer(self) -> bool:
        return self._count() >= self._before + self._value

    def _count(self) -> int:
        return self._manifest.read_bytes().count(b"\n") if self._manifest.exists() else 0


def require_fork_server() -> None:
    """Have one that answers: it dies of a client that is killed while it asks, as a run's own would with the run."""
    wait_until(fork_server_answers)


def fork_server_answers() -> bool:
    """Ask the fork server for a process; a dead one is replaced, but one that is still dying only refuses."""
    process = multiprocessing.get_context("forkserver").Process(target=int)
    try:
        process.start()
    except (EOFError, OSError):
        return False
    process.join()
    return True


def run(request: dict, streams: Path, terminal: Terminal | None) -> None:
    """Be the command."""
    os.chdir(request["folder"])
    if terminal:
        terminal.take()
    for descriptor, name, flags in (
        (0, "stdin", os.O_RDONLY),
        (1, "stdout", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        handle = os.open(streams / name, flags, 0o666)
        if not terminal:
            os.dup2(handle, descriptor)
    take_environment(request.get("environment", {}))
    # Of the one fork server that all runs share, which is no child of this process.
    forkserver._forkserver.ensure_running = lambda: None
    for name, most in request.get("limits", {}).items():
        resource.setrlimit(getattr(resource, name), (most, most))
    stopping.GRACE = request.get("grace", stopping.GRACE)
    if "fault" in request:
        faults.inject(**request["fault"])
    sys.argv = ["featx", *request["arguments"]]
    if "script" in request:
        run_script(request["script"])
    border.main()


def run_script(text: str) -> NoReturn:
    """Do as a new Python would."""
    try:
        exec(compile(text, "script", "exec"), {"__name__": "__main__"})
    except SystemExit as ended:
        sys.stdout.flush()
        os._exit(int(ended.code or 0))
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)


def take_environment(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    tempfile.tempdir = None
    importlib.reload(constants)
