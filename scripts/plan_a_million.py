#!/usr/bin/env python3
# Planning at scale: a million images in folders or an archive, found, compared with their manifest, and skipped.
"""Time what ``featx extract`` does before its first image: on a new run, on half a run, and on a complete one.

The images and their outputs are hard links to a few files, so that a million of them take little room; the manifest is
the one that a run would have left. Each step is timed in a process of its own.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from featx.images import archives, lists, sources
from featx.images.locators import stat_of
from featx.options import RECIPE
from featx.requests import Job
from featx.runs import layout, reading
from featx.runs.planning import plan_work
from featx.runs.remembered import Remembered
from featx.runs.summary import FORMAT, Counts, Summary
from featx.values import Input, Item, Weights, plain

# Links that a file may have on common file systems, with room to spare.
LINKS = 30_000
FOLDER = 1000

# What an image holds: nobody looks.
IMAGE = b"image"

KINDS = ("folder", "zip", "tar", "tar.gz")

JOB = Job(model="resnet50")


def main() -> None:
    """Make the images and the run, then time each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--kind", choices=KINDS, default="folder", help="where the images are")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        measure(options.step, options.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), options.count, options.kind)
        for step in STEPS:
            if options.kind == "folder" or step != "list and plan":
                subprocess.run([sys.executable, __file__, "--step", step, "--folder", folder], check=True)


def make(root: Path, count: int, kind: str) -> None:
    """Make images and outputs, and write list, manifest and summary."""
    run = root / "run"
    run.mkdir()
    with _put(root, kind) as put, (root / "list.txt").open("w", encoding="utf-8") as listed:
        for number in range(count):
            put(name_of(number))
            listed.write(f"{root}/photos/{name_of(number)}\n")
    source = root / "photos" if kind == "folder" else root / f"photos.{kind}"
    before = f"{source}/" if kind == "folder" else f"{source}{archives.MARK}"
    with _linked(run / "photos") as put:
        for number in range(count):
            put(f"{name_of(number)}.npz")
    for name, lines in (("run", count), ("half", count // 2)):
        place = root / name
        place.mkdir(exist_ok=True)
        if name == "half":
            (place / "photos").symlink_to(run / "photos")
        write_summary(place, count, [] if kind == "folder" else [contents_of(source, count)])
        write_manifest(place, lines, before)


def name_of(number: int) -> str:
    """Name an image: a thousand are in each folder."""
    return f"{number // FOLDER}/image-{number}.jpg"


@contextmanager
def _put(root: Path, kind: str) -> Iterator[Callable[[str], object]]:
    """Yield what puts an image into the folder or the archive."""
    if kind == "folder":
        with _linked(root / "photos") as put:
            yield put
    elif kind == "zip":
        with zipfile.ZipFile(root / "photos.zip", "w") as opened:
            yield lambda name: opened.writestr(name, IMAGE)
    else:
        mode = "w:gz" if kind == "tar.gz" else "w"
        with tarfile.open(root / f"photos.{kind}", mode) as tar:

            def put_member(name: str) -> None:
                member = tarfile.TarInfo(name)
                member.size = len(IMAGE)
                tar.addfile(member, io.BytesIO(IMAGE))
                tar.members.clear()  # which it would keep all

            yield put_member


@contextmanager
def _linked(folder: Path) -> Iterator[Callable[[str], object]]:
    """Yield what makes a file in a folder, as a link to one of a few."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as sources:
        links = 0

        def link(name: str) -> None:
            nonlocal links
            source = Path(sources, str(links // LINKS))
            if links % LINKS == 0:
                source.write_bytes(IMAGE)
            if links % FOLDER == 0:
                (folder / name).parent.mkdir(parents=True)
            os.link(source, folder / name)
            links += 1

        yield link


def contents_of(source: Path, count: int) -> dict[str, object]:
    """Say what a summary says of an archive."""
    stat = source.stat()
    return {"path": str(source), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "images": count}


def write_summary(run: Path, count: int, archived: list[dict[str, object]]) -> None:
    """Write the summary of a run."""
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
    text = json.dumps({"featx_format": FORMAT, **plain(summary), "archives": archived})
    (run / layout.SUMMARY).write_text(text, encoding="utf-8")


def write_manifest(run: Path, count: int, before: str) -> None:
    """Write the manifest of a run that has done so many images; `before` is what stands before their names."""
    frame = {"original": [500, 375], "input": [224, 224], "scale": [0.63, 0.63], "offset": [-45.3, -6.2]}
    with (run / layout.MANIFEST).open("w", encoding="utf-8") as lines:
        for number in range(count):
            name = name_of(number)
            stat = stat_of(f"{before}{name}")
            line = {
                "key": f"photos/{name}",
                "path": f"{before}{name}",
                "status": "done",
                "input": {"bytes": stat.bytes, "mtime_ns": stat.mtime_ns} if stat else {},
                "size": [500, 375],
                "frame": {**frame, "orientation": 1},
                "output": f"photos/{name}.npz",
                "bytes": len(IMAGE),
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


def plan(run: Path, items: list[Item]) -> str:
    """Skip the images that are done; standard error gets the time of this alone."""
    began = time.perf_counter()
    found = plan_work(run, items, JOB)
    print(f"planning alone: {time.perf_counter() - began:.1f} s", file=sys.stderr)
    return f"{found.done} done, {len(found.to_do)} to do"


def find_and_plan(folder: Path, name: str) -> str:
    """Find the images in their folders or archive, and skip those that are done."""
    remembered = Remembered(folder / name)
    source = next(path for path in folder.glob("photos*") if path.name != "photos" or path.is_dir())
    found = sources.find([str(source)], (), lambda path: remembered(path) or archives.listing(path))
    return plan(folder / name, found.items)


def list_and_plan(folder: Path) -> str:
    """Find the images of a list, and skip those that are done."""
    os.chdir(folder)
    listed = lists.read_file(folder / "list.txt")
    return plan(folder / "run", sources.find((), listed).items)


def open_run(folder: Path) -> str:
    """Open the run, and look one image up."""
    run = reading.open_run(folder / "run")
    last = list(run)[-1]
    return f"{len(run)} images, the last {run.frame(last).original}"


STEPS: dict[str, Callable[[Path], str]] = {
    "find and plan a new run": lambda folder: find_and_plan(folder, "new"),
    "find and plan the other half": lambda folder: find_and_plan(folder, "half"),
    "find and plan a complete run": lambda folder: find_and_plan(folder, "run"),
    "list and plan": list_and_plan,
    "open_run": open_run,
}


if __name__ == "__main__":
    main()
