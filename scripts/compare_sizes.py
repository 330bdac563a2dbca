#!/usr/bin/env python3
# What smaller maps cost and save: bytes, error, images a second, and whether the nearest photo is still the same.
"""Extract the same photos with each of several options, and compare.

Photos are crops of the pictures in a folder. Rates are medians of interleaved rounds, without what happens before the
first photo is written. The nearest photo is that with the largest cosine between means of a level,
less the mean over all photos; components are returned to channels for it.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import featx

OPTIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "--dtype float16": {"dtype": "float16"},
    "--dtype bfloat16 --format safetensors": {"dtype": "bfloat16", "format": "safetensors"},
    "--dtype int8": {"dtype": "int8"},
    "--grid 7": {"grid": 7},
    "--grid 7 --dtype int8": {"grid": 7, "dtype": "int8"},
    "--components 64": {"components": 64},
    "--grid 7 --components 64": {"grid": 7, "components": 64},
    "--grid 7 --components 64 --dtype int8": {"grid": 7, "components": 64, "dtype": "int8"},
    "--grid 1": {"grid": 1},
}


def main() -> None:
    """Run all options, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="folder of pictures to cut photos out of")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--count", type=int, default=200, help="photos that are compared")
    parser.add_argument("--level", type=int, default=3, help="whose means and errors are compared")
    parser.add_argument("--timed", type=int, default=64, help="photos of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="folder for the photos and runs, instead of a temporary one")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="featx-sizes-") as scratch:
        compare(asked, asked.keep or Path(scratch))


def compare(asked: argparse.Namespace, folder: Path) -> None:
    """Run all options in a folder, and print the table."""
    photos = cut_photos(asked.pictures, folder / "photos", max(asked.count, asked.timed))
    paths, runs = photos[: asked.count], {}
    for name, options in OPTIONS.items():
        print(name, file=sys.stderr)
        runs[name] = featx.open_run(extract(paths, folder / "runs" / _folder(name), asked, **options).output)
    rates: dict[str, list[float]] = {name: [] for name in OPTIONS}
    for number in range(asked.rounds):
        print(f"round {number + 1} of {asked.rounds}", file=sys.stderr)
        for name in list(OPTIONS)[:: 1 if number % 2 == 0 else -1]:
            basis = {"basis": runs[name].folder} if "components" in OPTIONS[name] else {}
            report = extract(photos[: asked.timed], folder / "timed", asked, **OPTIONS[name], **basis)
            rates[name].append(report.computed / report.summary["call"]["seconds"])
            shutil.rmtree(folder / "timed")
    whole, expected = runs["float32"].summary["bytes"], neighbours(runs["float32"], asked.level)
    print(
        f"| options | bytes an image | share | grid loses | the rest loses | images/s | same nearest of {len(paths)} |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, run in runs.items():
        size = run.summary["bytes"]
        lost = run.summary.get("cost", {"levels": {f"level_{asked.level}": {"grid": 0, "together": 0}}})["levels"]
        errors = lost[f"level_{asked.level}"]
        same = np.mean(neighbours(run, asked.level) == expected)
        rate = statistics.median(rates[name] or [0])
        cells = (f"{size / len(run):,.0f}", f"{size / whole:.3%}", f"{errors['grid']:.1%}", f"{errors['together']:.2%}")
        print(f"| {name} | {' | '.join(cells)} | {rate:.1f} | {same:.1%} |")


def extract(paths: list[Path], output: Path, asked: argparse.Namespace, **options: Any) -> Any:
    """Extract photos in batches that do not depend on their number."""
    batch_size = 8 if asked.device == "cpu" else 64
    return featx.extract(
        paths, asked.model, output, weights=asked.weights, device=asked.device, batch_size=batch_size, **options
    )


def cut_photos(pictures: Path, folder: Path, count: int) -> list[Path]:
    """Cut photos out of pictures, in turn: each between a half and the whole of the shorter side."""
    folder.mkdir(parents=True, exist_ok=True)
    generator, known = np.random.default_rng(0), Image.registered_extensions()
    found = sorted(path for path in pictures.iterdir() if path.suffix.lower() in known)
    paths = [folder / f"{number:04}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        if path.exists():
            continue
        with Image.open(found[number % len(found)]) as opened:
            picture = opened.convert("RGB")
        side = int(min(picture.size) * generator.uniform(0.5, 1))
        left, top = (int(generator.integers(length - side + 1)) for length in picture.size)
        picture.crop((left, top, left + side, top + side)).resize((256, 256)).save(path, quality=92)
    return paths


def neighbours(run: Any, level: int) -> np.ndarray[Any, Any]:
    """Return the number of the nearest photo of each."""
    means = np.stack([run.unproject(level, run[key][f"level_{level}"].mean((1, 2))) for key in sorted(run)])
    means = means - means.mean(0)
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    nearest: np.ndarray[Any, Any] = cosines.argmax(1)
    return nearest


def _folder(name: str) -> str:
    return name.replace(" --", "_").replace("--", "").replace(" ", "-")


if __name__ == "__main__":
    main()
