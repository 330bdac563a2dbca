#!/usr/bin/env python3
# Two versions of featx against the clock: start-up, one photo, many photos, their memory, and planning, in turn.
"""Time two versions of featx, each a folder or a git commit, in interleaved rounds.

Every command runs in a process of its own, with random weights. The table shows medians and their ratio; nothing is
judged, since other work on the machine can double any of them; CPU seconds suffer least.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from compare_versions import PHOTO, REPOSITORY, tree

FEATX = (sys.executable, "-m", "featx")
RESNET = ("--model", "resnet18", "--weights", "random", "--overwrite")

# Images of the long run.
MANY = 40

# What a measurement found: figures by their names.
Figures = dict[str, float]


def main() -> None:
    """Run the rounds, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", help="the version to compare with")
    parser.add_argument("second", nargs="?", default=REPOSITORY, help="the other one (default: this repository)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--planned", type=int, default=100_000, help="images in the run that is planned")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="of start, one, many, boxes, again, planning")
    options = parser.parse_args()
    measures: dict[str, Callable[[Path, Path], Figures]] = {
        "start": time_start,
        "one": time_one,
        "many": time_many,
        "boxes": time_boxes,
        "again": time_again,
        "planning": partial(time_planning, planned=options.planned),
    }
    chosen = [name for name in measures if fnmatchcase(name, options.only)]
    found: dict[str, tuple[list[float], list[float]]] = {}
    with ExitStack() as stack:
        trees = [stack.enter_context(tree(version)) for version in (options.first, options.second)]
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="featx-speed-")))
        make_photos(root / "photos", MANY)
        for version in trees:
            run("compile", version, root, sys.executable, "-m", "compileall", "-q", version / "featx")
        for number in range(options.rounds):
            for name in chosen:
                print(f"round {number + 1} of {options.rounds}: {name}", file=sys.stderr)
                for place in (0, 1) if number % 2 == 0 else (1, 0):
                    for figure, value in measures[name](trees[place], root).items():
                        found.setdefault(figure, ([], []))[place].append(value)
    print("| median | first | second | second / first |\n|---|---|---|---|")
    for figure, values in found.items():
        one, two = (statistics.median(each) if each else math.nan for each in values)
        print(f"| {figure} | {one:.3g} | {two:.3g} | {two / one if one else math.nan:.2f} |")


def make_photos(place: Path, count: int) -> None:
    """Make photos that are all different."""
    from PIL import Image

    place.mkdir()
    with Image.open(PHOTO) as photo:
        for number in range(count):
            photo.rotate(number * 3).save(place / f"{number}.jpg", quality=90)


def time_start(version: Path, root: Path) -> Figures:
    """Time the commands that have to answer at once."""
    commands = {
        "--help": ("--help",),
        "list-models": ("list-models",),
        "list-models --json": ("list-models", "--json"),
        "info": ("info", "--model", "resnet50"),
    }
    figures = {}
    for name, words in commands.items():
        figures |= run(f"featx {name}", version, root, *FEATX, *words)[0]
    return figures


def time_one(version: Path, root: Path) -> Figures:
    """Time one photo, with all that is loaded for it."""
    return run("one photo", version, root, *FEATX, "extract", "photos/0.jpg", *RESNET, "--output", "one")[0]


def time_many(version: Path, root: Path) -> Figures:
    """Time a folder: the whole command, and images a second from the model being ready on."""
    name = f"{MANY} photos"
    figures, printed = run(name, version, root, *FEATX, "extract", "photos", *RESNET, "--output", "many", "--json")
    summary = json.loads(printed)
    return {f"{name}, images/s": summary["counts"]["done"] / summary["seconds"], **figures}


def time_boxes(version: Path, root: Path) -> Figures:
    """Time a folder of which the features of ten boxes a photo are kept, after one of which the maps are."""
    if not (version / "featx/images/annotations.py").exists():
        return {}
    boxes = [f"{number}.jpg,{40 * place},60,{40 * place + 90},200" for number in range(MANY) for place in range(10)]
    (root / "boxes.csv").write_text("\n".join(["key,x1,y1,x2,y2", *boxes]))
    figures, size = {}, {}
    kept = {"maps": (), "boxes": ("--boxes", "boxes.csv", "--no-maps", "--format", "parquet")}
    for name, words in kept.items():
        command = ("extract", "photos", *RESNET, *words, "--output", f"with-{name}", "--json")
        figures |= (found := run(f"{MANY} photos, {name}", version, root, *FEATX, *command))[0]
        summary = json.loads(found[1])
        figures[f"{MANY} photos, {name}, images/s"] = summary["counts"]["done"] / summary["seconds"]
        size[name] = summary["bytes"]
    return {**figures, "bytes of boxes / bytes of maps": size["boxes"] / size["maps"]}


def time_again(version: Path, root: Path) -> Figures:
    """Time a finished run that is run again, so that nothing is to do."""
    words = ("extract", "photos", "--model", "resnet18", "--weights", "random", "--output", f"again-{version.name}")
    command = (*FEATX, *words)
    if not (root / command[-1]).exists():
        run("first", version, root, *command)
    return run("a finished run", version, root, *command)[0]


def time_planning(version: Path, root: Path, planned: int) -> Figures:
    """Time each step of a run in which nothing is left to do, by the version's own script."""
    script = version / "scripts/plan_a_million.py"
    _, printed = run("planning", version, root, sys.executable, script, "--count", planned)
    figures = {}
    for step, seconds, memory in re.findall(r"^(.+): ([0-9.]+) s, ([0-9.]+) GB", printed, re.MULTILINE):
        figures |= {f"{step} {planned}, s": float(seconds), f"{step} {planned}, GB": float(memory)}
    return figures


def run(name: str, version: Path, root: Path, *command: object) -> tuple[Figures, str]:
    """Run a command; return its seconds by the clock and of all cores, its largest memory, and what it printed."""
    environment = {**os.environ, "HF_HOME": str(root / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(version)}
    began = time.perf_counter()
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen([*map(str, command)], cwd=root, env=environment, stdout=printed, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        for stream in (printed, errors):
            stream.seek(0)
        if process.returncode:
            sys.exit(f"{version}: {' '.join(map(str, command))} failed: {errors.read().decode()}")
        figures = {
            f"{name}, s": seconds,
            f"{name}, CPU s": usage.ru_utime + usage.ru_stime,
            f"{name}, GB": usage.ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6),
        }
        return figures, printed.read().decode()


if __name__ == "__main__":
    main()
