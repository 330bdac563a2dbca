#!/usr/bin/env python3
# Two versions of featx side by side: the same commands with both, and whatever differs in what they write and print.
"""Run the same commands with two versions of featx, and compare what they leave, byte for byte.

A version is a folder or a git commit. Both extract the same photos with every combination of model and options in
combinations.py, with random weights. Then both go on with the runs of the first one: they resume them with one more
photo, verify them, read them and search them. Only durations and featx's version may differ. Exit status: 0 all the
same, 1 something differs.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from combinations import EXTRACT, QUERIES, REFUSALS

REPOSITORY = Path(__file__).resolve().parent.parent
PHOTO = REPOSITORY / "tests/photos/astronaut.jpg"

# What a command may take before it counts as stuck.
SECONDS = 300

# All that may differ, as it is written in summaries and on standard output.
UNSTEADY = re.compile(rb'("seconds": )[0-9.e-]+|("featx": )"[^"]*"')

# A command's exit status, what it printed, and its last error message.
Answer = tuple[int, bytes, str]


def main() -> None:
    """Run everything with both versions, and print a row for each combination."""
    if sys.argv[1:2] == ["--drive"]:
        drive(Path(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", help="the version that makes the runs")
    parser.add_argument("second", nargs="?", default=REPOSITORY, help="the other one (default: this repository)")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="combinations with such names: 'yolo*'")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a new folder for a copy of everything that was made")
    options = parser.parse_args()
    began = time.monotonic()
    with ExitStack() as stack:
        trees = [stack.enter_context(tree(name)) for name in (options.first, options.second)]
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="featx-compare-")))
        rows = compare(trees, root, options.only)
        if options.keep:
            shutil.copytree(root, options.keep)
    for name, differences in rows.items():
        print(f"| {name} | {'<br>'.join(differences) or 'same'} |")
    different = sum(map(bool, rows.values()))
    print(f"{len(rows)} combinations, {different} differ, {time.monotonic() - began:.0f} s", file=sys.stderr)
    sys.exit(1 if different or not rows else 0)


@contextmanager
def tree(version: str | Path) -> Iterator[Path]:
    """Give the folder of a version; a commit has one only meanwhile."""
    if Path(version).is_dir():
        yield Path(version).resolve()
        return
    packed = subprocess.run(["git", "-C", REPOSITORY, "archive", version], stdout=subprocess.PIPE, check=False)
    if packed.returncode:
        sys.exit(f"{version} is neither a folder nor a commit")
    with tempfile.TemporaryDirectory(prefix="featx-tree-") as place:
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(place, filter="data")
        yield Path(place)


def compare(trees: list[Path], root: Path, only: str) -> dict[str, list[str]]:
    """Run all combinations that match with both trees; return what differs in each."""
    make_photos(root / "photos")
    (root / "list").write_text(f"{root}/photos/alpha.png\n{root}/photos/deep/turned.jpg\n")
    runs = {name: _extract(name, text, root) for name, text in EXTRACT.items() if fnmatchcase(name, only)}
    others = {name: _words(text, root) for name, text in {**QUERIES, **REFUSALS}.items() if fnmatchcase(name, only)}
    if "resnet" not in runs:
        others.pop("resnet, refused: another recipe", None)  # which is refused because of that run
    rows: dict[str, list[str]] = {name: [] for name in {**runs, **others}}
    homes = root / "1", root / "2"

    _note(rows, "extract", run_in_both(trees, homes, "extract", {**runs, **others}))
    for name in runs:
        rows[name] += differing_files(*(home / "extract" / folder(name) for home in homes))

    if not runs:
        return rows

    # One more photo, in the folder and on the list, and the runs of the first version for both.
    shutil.copy(PHOTO, root / "photos/later.jpg")
    with (root / "list").open("a") as listed:
        listed.write(f"{root}/photos/later.jpg\n")
    for home in homes:
        shutil.copytree(homes[0] / "extract", home / "resume")
    _note(rows, "resume", run_in_both(trees, homes, "resume", runs))
    for name in runs:
        one, two = (home / "resume" / folder(name) for home in homes)
        rows[name] += [f"resume: {text}" for text in differing_files(one, two)]
        rows[name] += [f"resume: {text}" for text in computed_again(homes[0] / "extract" / folder(name), two)]

    for home in homes:
        shutil.copytree(homes[0] / "resume", home / "use")
    found = [name for name, words in runs.items() if "--embedding" in words]
    uses = {
        "verify": {name: ["verify", folder(name), "--recompute", "99", "--json"] for name in runs},
        "read": {name: ["read", folder(name)] for name in runs},
        "similar": {name: ["similar", folder(name), str(PHOTO), "-k", "3", "--json"] for name in found},
    }
    jobs = {f"{use} {name}": words for use, commands in uses.items() for name, words in commands.items()}
    answers = run_in_both(trees, homes, "use", jobs)
    for use, commands in uses.items():
        _note(rows, use, [{name: answer[f"{use} {name}"] for name in commands} for answer in answers])
    return rows


def folder(name: str) -> str:
    """Name the folder of a run."""
    return re.sub(r"\W+", "-", name).strip("-")


def _words(text: str, root: Path) -> list[str]:
    places = {"photos": root / "photos", "list": root / "list", "weights": root / "weights.safetensors"}
    return [word.format(**places) for word in shlex.split(text)]


def _extract(name: str, text: str, root: Path) -> list[str]:
    words = _words(text, root)
    named = "--from-file" in words or "-" in words or any(word.startswith(f"{root}/photos") for word in words)
    inputs = [] if named else [f"{root}/photos"]
    weights = [] if "--weights" in words else ["--weights", "random"]
    return ["extract", *inputs, *words, *weights, "--output", folder(name), "--json"]


def make_photos(place: Path) -> None:
    """Make the photos: colours, grey, transparency, one that is turned, one that ends too early."""
    from PIL import Image

    (place / "deep").mkdir(parents=True)
    shutil.copy(PHOTO, place / "photo.jpg")
    with Image.open(PHOTO) as photo:
        photo.crop((100, 0, 400, 200)).convert("L").save(place / "grey.png")
        transparent = photo.resize((240, 320))
        transparent.putalpha(transparent.convert("L"))
        transparent.save(place / "alpha.png")
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by a quarter
        photo.crop((0, 50, 330, 300)).save(place / "deep/turned.jpg", exif=exif)
    (place / "broken.jpg").write_bytes(PHOTO.read_bytes()[:20_000])
    (place / "words.txt").write_text("No image.")


# Running


def run_in_both(
    trees: Iterable[Path], homes: Iterable[Path], stage: str, jobs: dict[str, list[str]]
) -> list[dict[str, Answer]]:
    """Run commands with one tree after the other, each in a folder of its own; return the answers."""
    answers = []
    for path, home in zip(trees, homes, strict=True):
        place = home / "answers" / stage
        place.mkdir(parents=True)
        (home / stage).mkdir(exist_ok=True)
        (place / "jobs.json").write_text(json.dumps(jobs))
        print(f"{stage}: {len(jobs)} commands with {path}", file=sys.stderr)
        caches = {name: str(home / name) for name in ("HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME")}
        environment = {**os.environ, **caches, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "PYTHONPATH": str(path)}
        command = [sys.executable, __file__, "--drive", place]
        subprocess.run(command, cwd=home / stage, env=environment, check=True)
        answers.append({name: _answer(place, name) for name in jobs})
    return answers


def _answer(place: Path, name: str) -> Answer:
    status, printed, errors = ((place / f"{folder(name)}.{part}").read_bytes() for part in ("status", "out", "err"))
    return int(status), steady(printed), errors.decode(errors="replace").strip().rpartition("\n")[2][-300:]


def drive(place: Path) -> None:
    """Run the commands of a file, each in a fork of this process, which has loaded what takes long."""
    import timm
    from safetensors.torch import save_file

    weights = place.parents[2] / "weights.safetensors"
    if not weights.exists():
        save_file(timm.create_model("test_resnet").state_dict(), weights)
    for name, words in json.loads((place / "jobs.json").read_text()).items():
        child = os.fork()
        if not child:
            _run(words, weights.with_name("list"), place / folder(name))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        (place / f"{folder(name)}.status").write_text(str(status))


def _run(words: list[str], listed: Path, answer: Path) -> None:
    """Become one command: ``python -m featx`` with these words, or `read`."""
    signal.alarm(SECONDS)
    os.dup2(os.open(listed, os.O_RDONLY), 0)
    for number, part in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{answer}.{part}", os.O_WRONLY | os.O_CREAT), number)
    if words[0] == "read":
        print(json.dumps(read(words[1]), sort_keys=True))  # mappings are equal in any order
        sys.exit()
    sys.argv = ["featx", *words]
    runpy.run_module("featx", run_name="__main__", alter_sys=True)
    sys.exit()


def read(place: str) -> dict[str, Any]:
    """Read all of a run through featx's own door."""
    import featx

    run = featx.open_run(place)
    names = ("key", "index", "name", "channels", "stride", "offset", "height", "width", "part")
    levels = [*run.levels, *([run.final] if run.final else [])]
    fields = {field.key: [field.shape, field.dtype] for field in run.fields}
    frames = {key: run.frame(key) for key in run}
    return {
        "keys": list(run.keys()),
        "failed": sorted(run.failed),
        "summary": run.summary,
        "levels": [{name: getattr(level, name) for name in names} for level in levels],
        "fields": fields,
        "arrays": {key: [[name, _digest(array)] for name, array in run[key].items()] for key in run},
        "frames": {
            key: [frame.original, frame.input, frame.scale, frame.offset, frame.orientation, frame.to_original(3, 5)]
            for key, frame in frames.items()
        },
        "vectors": [[keys, _digest(rows)] for keys, rows in (run.embeddings() if "embedding" in fields else ())],
        "tensors": {name: str(value) for name, value in run.dataset()[0].items()},
    }


def _digest(array: Any) -> list[Any]:
    return [str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()]


# Differences


def _note(rows: dict[str, list[str]], stage: str, answers: list[dict[str, Answer]]) -> None:
    """Add to the rows what differs between two answers to a command, and any answer that is not the one expected."""
    for name, (status, printed, message) in answers[0].items():
        status_now, printed_now, message_now = answers[1][name]
        if status != status_now:
            rows[name].append(f"{stage}: exit status {status} -> {status_now}: {message_now or message}")
        elif status not in ((1, 2) if name in REFUSALS else (0, 3)):
            rows[name].append(f"{stage}: exit status {status} with both: {message_now}")
        if printed != printed_now:
            rows[name].append(f"{stage}: standard output: {difference(printed, printed_now)}")


def differing_files(one: Path, two: Path) -> list[str]:
    """Compare all files of two folders byte for byte."""
    before, now = _files(one), _files(two)
    found = [f"{name} is missing" for name in sorted({*before} - {*now})]
    found += [f"{name} is new" for name in sorted({*now} - {*before})]
    shared = ((name, _contents(before[name]), _contents(now[name])) for name in sorted({*before} & {*now}))
    return found + [f"{name}: {difference(*contents)}" for name, *contents in shared if contents[0] != contents[1]]


def _files(place: Path) -> dict[str, Path]:
    return {path.relative_to(place).as_posix(): path for path in place.rglob("*") if path.is_file()}


def _contents(path: Path) -> bytes:
    data = path.read_bytes()
    return steady(data) if path.name == "summary.json" else data


def steady(data: bytes) -> bytes:
    """Remove from a document what may differ."""
    return UNSTEADY.sub(rb"\1\2", data)


def difference(one: bytes, two: bytes) -> str:
    """Show where two texts part, or two files."""
    place = next((place for place, (old, new) in enumerate(zip(one, two, strict=False)) if old != new), len(one))
    if b"\0" in one + two:
        return f"{len(one)} -> {len(two)} bytes, other ones from byte {place}"
    pieces = [data[max(place - 50, 0) : place + 50].decode(errors="replace") for data in (one, two)]
    return " -> ".join(re.sub(r"\s+", " ", piece).replace("|", "¦") for piece in pieces)


def computed_again(before: Path, now: Path) -> list[str]:
    """Name what a resumed run made again although it was there."""
    if not all((place / "manifest.jsonl").exists() for place in (before, now)):
        return []
    old, new = ((place / "manifest.jsonl").read_bytes().splitlines() for place in (before, now))
    if new[: len(old)] != old:
        return ["the manifest was not continued"]
    done = {line["key"]: line["output"] for line in map(json.loads, old) if line["status"] == "done"}
    again = {line["key"] for line in map(json.loads, new[len(old) :])} & {*done}
    for key, output in done.items():
        times = {(place / output).stat().st_mtime_ns for place in (before, now) if (place / output).exists()}
        if output.endswith(".npz") and len(times) > 1:
            again.add(key)
    return [f"{key} was computed again" for key in sorted(again)]


if __name__ == "__main__":
    main()
