# A process that has loaded torch once and forks a run of the real command for every request: thousands in minutes.
"""Reads one JSON request a line, writes one JSON answer a line.

A request has ``arguments`` and ``folder``; perhaps ``kill_after`` (seconds), or ``kill_when`` (a file is there) and
``lines`` (so many more of the manifest), ``again_after`` and ``signal``; ``fault`` (see `faults`), ``limits`` (of
resources) and ``isolation`` (whether images may be read in processes of their own).
"""

from __future__ import annotations

import gc
import io
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from multiprocessing import forkserver
from pathlib import Path

import torch
from PIL import Image

from featx.cli import commands
from featx.cli import main as border
from featx.engine import isolation
from featx.runs.formats import npy, parquet  # noqa: F401 - before forking, since they take their time
from tests.faults import faults


def main() -> None:
    torch.set_num_threads(1)
    warm_up()
    forkserver.set_forkserver_preload([isolation.__name__])
    assert threading.active_count() == 1
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        sys.stdout.write(json.dumps(serve(request)) + "\n")
        sys.stdout.flush()


def warm_up() -> None:
    """Run the command once, in this process, for all that is imported and set up on first use."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        Image.new("RGB", (80, 60)).save(f"{folder}/1.png")
        arguments = [
            "extract",
            f"{folder}/1.png",
            "--model",
            "test_resnet",
            "--weights",
            "random",
            "--image-size",
            "64",
        ]
        with suppress(SystemExit):
            commands.app([*arguments, "--quiet", "--device", "cpu", "--output", f"{folder}/out"])
        with suppress(SystemExit):
            commands.app(["verify", f"{folder}/out"])


def serve(request: dict) -> dict:
    if request.get("isolation"):
        require_fork_server()
    began = time.perf_counter()
    request["before"] = count_lines(request)
    pid = os.fork()
    if pid == 0:
        run(request)
    if "kill_when" in request:
        wait_for(lambda: Path(request["kill_when"]).exists(), pid)
        if "lines" in request:  # of the manifest, that many more
            before = request["before"]
            wait_for(lambda: count_lines(request) >= before + request["lines"], pid)
        request["kill_after"] = 0
    if "kill_after" in request:
        for pause in (request["kill_after"], *request.get("again_after", ())):
            time.sleep(pause)
            os.kill(pid, request.get("signal", signal.SIGKILL))
    _, status, usage = os.wait4(pid, 0)
    folder = Path(request["folder"])
    return {
        "status": os.waitstatus_to_exitcode(status),
        "seconds": time.perf_counter() - began,
        "megabytes": usage.ru_maxrss / 1e3,
        "stdout": (folder / "stdout").read_text(errors="replace"),
        "stderr": (folder / "stderr").read_text(errors="replace"),
    }


def count_lines(request: dict) -> int:
    """Count the lines that the manifest has by now."""
    manifest = Path(request["folder"]) / "out" / "manifest.jsonl"
    return manifest.read_bytes().count(b"\n") if manifest.exists() else 0


def wait_for(condition: Callable[[], bool], pid: int) -> None:
    """Wait until something is so, or the process has ended."""
    while not condition() and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.01)


def require_fork_server() -> None:
    """Have one that answers: it dies of a client that is killed while it asks, as a run's own would with the run."""
    while True:
        try:
            process = multiprocessing.get_context("forkserver").Process(target=int)
            process.start()
            process.join()
        except (EOFError, OSError):
            continue
        return


def run(request: dict) -> None:
    """Be the command."""
    os.chdir(request["folder"])
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # Of the one fork server that all runs share, which is no child of this process.
    forkserver._forkserver.ensure_running = lambda: None
    for name, most in request.get("limits", {}).items():
        resource.setrlimit(getattr(resource, name), (most, most))
    if "fault" in request:
        faults.inject(**request["fault"])
    sys.argv = ["featx", *request["arguments"]]
    border.main()


if __name__ == "__main__":
    main()
