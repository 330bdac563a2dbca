#!/usr/bin/env python3
# The ways to run many photos against the clock: a folder, a tar, two shards at the same time, and Ray, in turn.
"""Time the ways in which the same photos can be run, in interleaved rounds.

Every run is a process of its own, two shards are two, with random weights. The rate is that of the last four fifths of
the photos, when all workers are at work; the time to the first photo has all that is started and loaded before. The
outputs must be equal. Only an idle machine tells: on a busy one, several processes get more of it than one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
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

# The options of each process of a way, and its input.
WAYS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "folder": ("photos", [{}]),
    "tar": ("photos.tar", [{}]),
    "two shards": ("photos", [{"shard": "1/2"}, {"shard": "2/2"}]),
    "ray": ("photos", [{"engine": "ray", "ray_workers": 2}]),
}


def main() -> None:
    """Run the rounds, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--count", type=int, default=500, help="photos")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--only", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help="of " + ", ".join(WAYS)
    )
    parser.add_argument("--once", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(run(**options.once)))
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in options.only}
    with tempfile.TemporaryDirectory(prefix="featx-ways-") as folder:
        make_photos(Path(folder) / "photos", options.count)
        with tarfile.open(Path(folder) / "photos.tar", "w") as tar:
            tar.add(Path(folder) / "photos", "")
        for number in range(options.rounds):
            for way in options.only[:: 1 if number % 2 == 0 else -1]:
                print(f"round {number + 1} of {options.rounds}: {way}", file=sys.stderr)
                found[way].append(run_once(folder, way, options))
            if len({json.dumps(manifest.digests(Path(folder) / way), sort_keys=True) for way in options.only}) > 1:
                sys.exit("the outputs differ")
    print_table({way: medians(rounds) for way, rounds in found.items()})


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Take the median of each figure."""
    return {figure: statistics.median(each[figure] for each in rounds) for figure in rounds[0]}


def print_table(found: dict[str, dict[str, float]]) -> None:
    """Print the figures, each with its ratio to that of the first way."""
    first = next(iter(found.values()))
    print(f"| | {' | '.join(first)} |\n|---|{'---|' * len(first)}")
    for way, figures in found.items():
        cells = (f"{value:.3g} ({value / first[figure]:.2f})" for figure, value in figures.items())
        print(f"| {way} | {' | '.join(cells)} |")


def run_once(folder: str, way: str, options: argparse.Namespace) -> dict[str, float]:
    """Time the processes of a way, all at the same time."""
    source, each = WAYS[way]
    shutil.rmtree(Path(folder) / way, ignore_errors=True)
    # Ray's workers are nice to other processes, which on a busy machine would make all the difference.
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "RAY_worker_niceness": "0"}
    began = time.monotonic()
    processes = []
    for settings in each:
        once = {"source": source, "model": options.model, "output": way, "device": options.device, **settings}
        command = [sys.executable, str(Path(__file__).absolute()), "--once", json.dumps(once)]
        piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, cwd=folder, env=environment, **piped))
    printed = [process.communicate() for process in processes]
    took = time.monotonic() - began
    for process, (_, error) in zip(processes, printed, strict=True):
        if process.returncode:
            sys.exit(error)
    times = sorted(moment for text, _ in printed for moment in json.loads(text.splitlines()[-1]))
    warm = int(len(times) * WARM)
    rate = (len(times) - warm) / (times[-1] - times[warm - 1])
    return {"images/s": rate, "first photo, s": times[0] - began, "whole command, s": took}


def run(source: str, model: str, output: str, device: str, **settings: Any) -> list[float]:
    """Run the photos, and return when each was done."""
    times = []

    def listen(event: Any) -> None:
        if hasattr(event, "item"):
            times.append(time.monotonic())

    featx.extract(source, model, output, weights="random", device=device, listener=listen, **settings)
    return times


if __name__ == "__main__":
    main()
