# What the tests share: photos, small runs of them, what a run's folder holds, and waiting for something to happen.
from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import featx

TESTS = Path(__file__).parent
ROOT = TESTS.parent

# NASA's portrait of Eileen Collins, 512 x 512, public domain.
PHOTO = TESTS / "photos" / "astronaut.jpg"

# A small model on the processor, for commands.
MODEL = ("--model", "test_resnet", "--weights", "random", "--image-size", "64", "--device", "cpu")

# Seconds after which a test gives up: longer than any machine takes, however busy it is.
HANGS = 600

# Tests kill processes and let disks fail, but never cut the power: to wait for the disk would only take time.
os.fsync = os.fstat


def natural_image(seed: int, width: int = 96, height: int = 72) -> Image.Image:
    """Noise with a photograph's falling spectrum, so that JPEG and resampling have something to do."""
    generator = np.random.default_rng(seed)
    y, x = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
    spectrum = 1 / np.maximum(np.hypot(x, y), 1 / max(width, height))
    channels = []
    for _ in range(3):
        phases = np.exp(2j * np.pi * generator.random((height, width)))
        values = np.fft.ifft2(spectrum * phases).real
        channels.append((values - values.min()) / np.ptp(values) * 255)
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def make_photos(folder: Path, count: int, name: str = "{}.jpg") -> Path:
    """Photos that are all different: ``0.jpg`` and so on."""
    folder.mkdir(parents=True)
    for number in range(count):
        natural_image(number, 80 + number % 7, 70).save(folder / name.format(number))
    return folder


def extract(inputs, output, **options):
    """Run a small model on the processor."""
    options = {"model": "test_resnet", "weights": "random", "device": "cpu", "image_size": 64, **options}
    return featx.extract(inputs, options.pop("model"), output, **options)


def tree(folder: Path) -> dict[str, str]:
    """Every file and its sha256."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def outputs(folder: Path) -> dict[str, str]:
    """Every .npz file and its sha256."""
    return {name: digest for name, digest in tree(folder).items() if name.endswith(".npz")}


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def write_lines(folder: Path, entries: list[dict]) -> None:
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in entries))


def notes(heard: list) -> list[str]:
    """What a listener was told that is no outcome."""
    return [event.text for event in heard if hasattr(event, "text")]


def errors(printed: str) -> list[str]:
    """Return the lines that are errors; a forecast may stand before them."""
    return [line for line in printed.splitlines() if not line.startswith(("input  ", "output  ", "memory  "))]


def wait_until(condition: Callable[[], object], *, unless: Callable[[], object] = lambda: False) -> None:
    """Wait until something is so; fail where it never will be, since something else is so or nothing happens."""
    deadline = time.monotonic() + HANGS
    while not condition():
        assert not unless(), "it ended before"
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(0.01)
