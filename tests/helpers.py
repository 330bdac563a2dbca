# Small runs for tests: photos, a run of them, and what its folder holds.
from __future__ import annotations

import hashlib
import json
from pathlib import Path

import featx
from tests.conftest import natural_image


def make_photos(folder: Path, count: int) -> Path:
    """Photos that are all different: ``0.jpg`` and so on."""
    folder.mkdir(parents=True)
    for number in range(count):
        natural_image(number, 80 + number % 7, 70).save(folder / f"{number}.jpg")
    return folder


def extract(inputs, output, **options):
    """Run a small model on the processor."""
    options = {"weights": "random", "device": "cpu", "image_size": 64, **options}
    return featx.extract(inputs, "test_resnet", output, **options)


def tree(folder: Path) -> dict[str, str]:
    """Every file and its sha256."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def write_lines(folder: Path, entries: list[dict]) -> None:
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in entries))


def notes(heard: list) -> list[str]:
    """What a listener was told that is no outcome."""
    return [event.text for event in heard if hasattr(event, "text")]
