#!/usr/bin/env python3
# How long a search for patches takes: a run of random maps, featx and plain products of the same numbers in turn.
"""Time the search for the nearest patches against one plain product with all maps, in interleaved rounds."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import featx
from featx.runs.formats.npz import pack_npz
from featx.runs.reading import Run

PHOTO = Path(__file__).parent.parent / "tests" / "photos" / "astronaut.jpg"


def main() -> None:
    """Make maps, search them, and hold what was found against brute force in double precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=1_000)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--level", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="featx-patches-") as place:
        run, maps = make(Path(place), options.photos, options.model, options.level)
        key, at = next(iter(run)), (200.0, 150.0)
        query = run.sample(key, [at], options.level)[f"level_{options.level}"][0]
        asked = {"at": at, "level": options.level, "with_self": True}
        ways: dict[str, Callable[[], object]] = {
            "featx": lambda: featx.similar_patches(run, key, **asked).found,
            "one product": lambda: (query @ maps).argmax(axis=1),
            "product and lengths": lambda: (query @ maps / np.linalg.norm(maps, axis=1)).argmax(axis=1),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(options.rounds + 1):
            for way, work in ways.items():
                began = time.perf_counter()
                work()
                seconds[way] += [time.perf_counter() - began] if number else []  # the first one reads the files
        best = featx.similar_patches(run, key, **asked).found
        if not np.allclose([each.score for each in best], brute_force(maps, query)[: len(best)], rtol=0, atol=1e-12):
            sys.exit("featx found others than brute force")
        print(f"{len(run)} maps of {' x '.join(map(str, run[key][best[0].level].shape))}, {maps.nbytes / 1e9:.2f} GB")
        for way, times in seconds.items():
            median = statistics.median(times)
            print(f"{way}: {median:.3f} s, {maps.nbytes / 1e9 / median:.2f} GB/s")


def make(folder: Path, count: int, model: str, level: int) -> tuple[Run, np.ndarray]:
    """Extract one photo, and write a run of many with random maps; return it, and all maps in one mapped array."""
    featx.extract(PHOTO, model, folder / "run", weights="random", device="cpu", out_indices=[level])
    run = featx.open_run(folder / "run")
    manifest, shape = run.folder / "manifest.jsonl", next(iter(run.values()))[f"level_{level}"].shape
    line, generator = json.loads(manifest.read_text()), np.random.default_rng(0)
    path = folder / "maps.npy"
    maps = np.lib.format.open_memmap(path, "w+", np.float32, (count, shape[0], shape[1] * shape[2]))
    with manifest.open("w") as lines:
        for number in range(count):
            maps[number] = generator.standard_normal(maps.shape[1:], np.float32)
            output = run.folder / f"{number}.jpg.npz"
            output.write_bytes(b"".join(pack_npz({f"level_{level}": maps[number].reshape(shape)})))
            lines.write(json.dumps({**line, "key": f"{number}.jpg", "output": output.name}) + "\n")
    maps.flush()
    return featx.open_run(run.folder), np.load(path, mmap_mode="r")


def brute_force(maps: np.ndarray, query: np.ndarray) -> list[float]:
    """Return the largest cosine in each map, the largest first, all in double precision."""
    direction = query.astype(np.float64) / np.linalg.norm(query.astype(np.float64))
    best = [(direction @ each / np.linalg.norm(each, axis=0)).max() for each in (part.astype(float) for part in maps)]
    return sorted(best, reverse=True)


if __name__ == "__main__":
    main()
