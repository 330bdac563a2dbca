#!/usr/bin/env python3
# The engines against the clock: the local one, and Ray on the same machine, in turn.
"""Time the local engine and Ray with two workers on the same photos, in interleaved rounds.

Every run is a process of its own, with random weights. The rate is that of the last four fifths of the photos, when all
workers are at work; the time to the first photo has all that is started and loaded before. The outputs must be equal.
Only an idle machine tells: on a busy one, several processes get more of it than one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from compare_speed import make_photos
from compare_versions import REPOSITORY

import featx
from featx.runs import manifest

# Of the photos, the share after which the rate is measured.
WARM = 0.2


def main() -> None:
    """Run the rounds, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--count", type=int, default=500, help="photos")
    parser.add_argument("--workers", type=int, default=2, help="Ray's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", metavar="ENGINE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(time_run(options.model, options.once, options.workers)))
        return
    found: dict[str, list[dict[str, float]]] = {"local": [], "ray": []}
    with tempfile.TemporaryDirectory(prefix="featx-engines-") as folder:
        make_photos(Path(folder) / "photos", options.count)
        for number in range(options.rounds):
            for engine in list(found)[:: 1 if number % 2 == 0 else -1]:
                print(f"round {number + 1} of {options.rounds}: {engine}", file=sys.stderr)
                found[engine].append(run_once(folder, engine, options))
            one, two = (manifest.digests(Path(folder) / engine) for engine in found)
            if one != two:
                sys.exit("the outputs differ")
    print("| median | local | ray | ray / local |\n|---|---|---|---|")
    for figure in found["local"][0]:
        one, two = (statistics.median(each[figure] for each in found[engine]) for engine in found)
        print(f"| {figure} | {one:.3g} | {two:.3g} | {two / one:.2f} |")


def run_once(folder: str, engine: str, options: argparse.Namespace) -> dict[str, float]:
    """Time a run in a process of its own."""
    words = ("--once", engine, "--model", options.model, "--workers", str(options.workers))
    # Ray's workers are nice to other processes, which on a busy machine would make all the difference.
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "RAY_worker_niceness": "0"}
    began = time.perf_counter()
    command = [sys.executable, str(Path(__file__).absolute()), *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {"whole process, s": time.perf_counter() - began, **figures}


def time_run(model: str, engine: str, workers: int) -> dict[str, float]:
    """Run once, and time the images."""
    began, times = time.perf_counter(), []

    def listen(event: Any) -> None:
        if hasattr(event, "item"):
            times.append(time.perf_counter())

    more = {"ray_workers": workers} if engine == "ray" else {}
    settings = {"weights": "random", "device": "cpu", "overwrite": True}
    featx.extract("photos", model, engine, engine=engine, listener=listen, **settings, **more)
    warm = int(len(times) * WARM)
    return {"first photo, s": times[0] - began, "images/s": (len(times) - warm) / (times[-1] - times[warm - 1])}


if __name__ == "__main__":
    main()
