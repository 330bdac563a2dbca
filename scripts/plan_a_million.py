#!/usr/bin/env python3
# Planning at scale: a million images that are done already, found, compared with their manifest, and skipped.
"""Time what ``featx extract`` does before its first image, on a run that is complete.

The images and their outputs are hard links to a few files, so that a million of them take no room; the manifest is the
one that a run would have left. Each step is timed in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from featx.images import lists, sources
from featx.images.locators import stat_of
from featx.options import RECIPE
from featx.requests import Job
from featx.runs import layout, reading
from featx.runs.planning import plan_work
from featx.runs.summary import FORMAT, Counts, Summary
from featx.values import Input, Item, Weights, plain

# Links that a file may have on common file systems, with room to spare.
LINKS = 30_000
FOLDER = 1000

JOB = Job(model="resnet50")


def main() -> None:
    """Make the run, then time each step on it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        measure(options.step, options.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), options.count)
        for step in STEPS:
            subprocess.run([sys.executable, __file__, "--step", step, "--folder", folder], check=True)


def make(root: Path, count: int) -> None:
    """Link images and outputs, and write list, manifest and summary."""
    run = root / "run"
    (root / "sources").mkdir()
    run.mkdir()
    summary = Summary(
        state="done",
        model=JOB.model,
        source="timm",
        weights=Weights("random", "seed 0", "0"),
        levels=(),
        arrays=(),
        input=Input(224, 224, (0.5,) * 3, (0.5,) * 3, "bicubic", 0.875, "crop", "own"),
        recipe={
            **RECIPE,
            "model": JOB.model,
            "weights": "0",
            "levels": [],
            "device": "cpu",
            "batch_size": 8,
            "threads": 1,
            "versions": {},
        },
        counts=Counts(count, 0, count),
        seconds=0.0,
    )
    (run / layout.SUMMARY).write_text(json.dumps({"featx_format": FORMAT, **plain(summary)}), encoding="utf-8")
    with (
        (run / layout.MANIFEST).open("w", encoding="utf-8") as lines,
        (root / "list.txt").open("w", encoding="utf-8") as listed,
    ):
        for number in range(count):
            if number % LINKS == 0:
                source = root / "sources" / str(number)
                source.write_bytes(b"image")
            if number % FOLDER == 0:
                (root / f"photos/{number // FOLDER}").mkdir(parents=True)
                (run / f"photos/{number // FOLDER}").mkdir(parents=True)
            key = f"photos/{number // FOLDER}/image-{number}.jpg"
            os.link(source, root / key)
            os.link(source, run / f"{key}.npz")
            listed.write(f"{root}/{key}\n")
            stat = stat_of(f"{root}/{key}")
            frame = {"original": [500, 375], "input": [224, 224], "scale": [0.63, 0.63], "offset": [-45.3, -6.2]}
            line = {
                "key": key,
                "path": f"{root}/{key}",
                "status": "done",
                "input": {"bytes": 5, "mtime_ns": stat.mtime_ns if stat else 0},
                "size": [500, 375],
                "frame": {**frame, "orientation": 1},
                "output": f"{key}.npz",
                "bytes": 5,
                "sha256": f"{number:064x}",
            }
            lines.write(json.dumps(line, separators=(",", ":")) + "\n")


def measure(step: str, folder: Path) -> None:
    """Do one step, and print what it took."""
    began = time.perf_counter()
    result = STEPS[step](folder)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{step}: {seconds:.1f} s, {peak:.2f} GB; {result}")


def plan(folder: Path, items: list[Item]) -> str:
    """Skip the images that are done; standard error gets the time of this alone."""
    began = time.perf_counter()
    found = plan_work(folder / "run", items, JOB)
    print(f"planning alone: {time.perf_counter() - began:.1f} s", file=sys.stderr)
    return f"{found.done} done, {len(found.to_do)} to do"


def walk_and_plan(folder: Path) -> str:
    """Find the images in their folders, and skip those that are done."""
    return plan(folder, sources.find([str(folder / "photos")]).items)


def list_and_plan(folder: Path) -> str:
    """Find the images of a list, and skip those that are done."""
    os.chdir(folder)
    listed = lists.read_file(folder / "list.txt")
    return plan(folder, sources.find((), listed).items)


def open_run(folder: Path) -> str:
    """Open the run, and look one image up."""
    run = reading.open_run(folder / "run")
    last = list(run)[-1]
    return f"{len(run)} images, the last {run.frame(last).original}"


STEPS = {"walk and plan": walk_and_plan, "list and plan": list_and_plan, "open_run": open_run}


if __name__ == "__main__":
    main()
