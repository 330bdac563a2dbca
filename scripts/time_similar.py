#!/usr/bin/env python3
# How long a search takes: random vectors in a mapped array, featx and brute force in turn, both asked the same.
"""Time the search for the nearest of many vectors against one plain product with all of them, in interleaved rounds."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from featx.explore.similarity import nearest
from featx.runs.formats.npy import BLOCK


def main() -> None:
    """Make vectors, search them, and hold what was found against brute force in double precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--length", type=int, default=1_280)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "embeddings.npy"
        np.save(path, generator.standard_normal((options.rows, options.length), dtype=np.float32))
        rows = np.load(path, mmap_mode="r")
        keys = [str(number) for number in range(options.rows)]
        float(rows.sum())  # read once
        ours, plain = [], []
        for _ in range(options.rounds):
            query = generator.standard_normal(options.length, dtype=np.float32)
            began = time.perf_counter()
            blocks = (
                (keys[start : start + BLOCK], rows[start : start + BLOCK]) for start in range(0, len(rows), BLOCK)
            )
            found = nearest(blocks, query, 10)
            ours.append(time.perf_counter() - began)
            began = time.perf_counter()
            cosines = rows @ query / (np.linalg.norm(rows, axis=1) * np.linalg.norm(query))
            np.argsort(-cosines)[:10]
            plain.append(time.perf_counter() - began)
            if [key for key, _ in found] != brute_force(rows, query, 10):
                sys.exit("featx found others than brute force")
    both = statistics.median(ours), statistics.median(plain)
    print(
        f"{options.rows} x {options.length}: featx {both[0]:.3f} s, one product {both[1]:.3f} s, medians of interleaved"
    )


def brute_force(rows: np.ndarray, query: np.ndarray, count: int) -> list[str]:
    """Return the names of the nearest rows, all judged in double precision."""
    cosines = np.concatenate(
        [
            part @ query.astype(np.float64) / np.linalg.norm(part, axis=1)
            for part in (rows[start : start + BLOCK].astype(np.float64) for start in range(0, len(rows), BLOCK))
        ]
    )
    return [str(place) for place in np.argsort(-cosines, kind="stable")[:count]]


if __name__ == "__main__":
    main()
