# What the fault tests share: many small photos, the forge that runs the command on them, and what a folder holds.
from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent.parent
MODEL = ("--model", "test_resnet", "--weights", "random", "--image-size", "64", "--device", "cpu")


class Forge:
    """Runs of the real command, each in a process of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forge"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "400", "PYTHONWARNINGS": "ignore"},
            text=True,
        )

    def __call__(self, folder: Path, *arguments: object, **request) -> dict:
        request |= {"folder": str(folder), "arguments": [str(argument) for argument in arguments]}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def extract(self, folder: Path, inputs: object, output: str, *more: object, **request) -> dict:
        return self(folder, "extract", inputs, *MODEL, "--output", output, *more, **request)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(30)


@pytest.fixture(scope="session")
def forge():
    running = Forge()
    yield running
    running.close()


def make_photos(folder: Path, count: int) -> Path:
    """Small photos that are all different."""
    folder.mkdir()
    for number in range(count):
        blobs = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(blobs).resize((80, 60), Image.Resampling.BICUBIC).save(folder / f"{number:04}.jpg")
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Return a folder of 500 photos."""
    return make_photos(tmp_path_factory.mktemp("faults") / "photos", 500)


def outputs(folder: Path) -> dict[str, str]:
    """Every output and its sha256."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.npz"))
    }


def everything(folder: Path) -> dict[str, str]:
    """Every file and its sha256."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def require_complete(folder: Path, expected: dict[str, str]) -> None:
    """Nothing lost, nothing twice, nothing corrupt, nothing stale."""
    assert outputs(folder) == expected
    entries = lines(folder)
    assert sorted(line["output"] for line in entries) == sorted(expected)
    assert {line["output"]: line["sha256"] for line in entries} == expected
    assert json.loads((folder / "summary.json").read_text())["state"] == "done"
    left = {path.name for path in folder.rglob("*") if path.is_file()} - {Path(name).name for name in expected}
    assert left == {"manifest.jsonl", "summary.json"}
    assert not (folder / ".unfinished").exists()


def require_only_complete_files(folder: Path, expected: dict[str, str]) -> None:
    """What a kill may leave under a final name: nothing, or all of it."""
    for name, digest in outputs(folder).items() if folder.exists() else ():
        if not name.startswith(".unfinished/"):
            assert digest == expected[name], f"{name} is not complete"
