# Where the time goes on this machine: each stage alone, with all its threads, then all of them together.
"""``featx bench`` as a function."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featx import files
from featx.command_options import BenchOptions
from featx.engine import checks, isolation, pipeline, resources
from featx.engine.batching import Ready, Value, by_size, in_order
from featx.engine.computing import Computer
from featx.engine.resources import Workers
from featx.engine.room import Room
from featx.engine.work import Batch, Computed, Work
from featx.errors import UsageError
from featx.images import sources
from featx.models.devices import choose_devices
from featx.models.pyramid import load
from featx.requests import Job
from featx.runs import formats
from featx.runs.layout import UNFINISHED
from featx.values import Item, Outcome

# Decode and resize; the network; lay out, hash and write; wait for the disk.
STAGES = ("read", "forward", "write", "commit")

# Images that are generated if none are given: the size of a typical photo on the web.
PHOTO = (500, 400)


def bench(job: Job, count: int, rounds: int) -> dict[str, Any]:
    """Time the stages of a run, each alone and then the pipeline, in interleaved rounds; nothing is kept.

    Parameters
    ----------
    job : Job
        Model, device and so on; of its inputs, or of made-up photos if it has none, `count` are used.
    count : int
        Images in each round.
    rounds : int
        Number of rounds to take medians over.

    Returns
    -------
    dict
        ``model``, ``device``, ``precision``, ``backend``, ``dtype``, ``workers``; ``images`` and ``rounds``; for every
        stage its ``images_per_second`` alone and ``bytes_per_image``; ``limit`` and ``pipeline``, both in images per
        second; ``share``, the second divided by the first. On a CPU, whose cores all stages except the disk's share,
        the stages' times per image add up to set the limit; on a GPU the slowest stage is the limit.

    Raises
    ------
    FeatxError
        If the model cannot be run, or no image can be read.
    """
    asked = BenchOptions(count=count, rounds=rounds)
    job = checks.completed(job)
    devices = choose_devices(job.device)
    pyramids = [load(job.request, device) for device in devices]
    with files.temporary_folder() as scratch:
        items = _items(job, asked.count, scratch / "photos")
        computers, workers = resources.spread(pyramids, job, len(items), {})
        resources.use_backend(computers, workers)
        reader = isolation.Reader(pyramids[0].preprocessor, job.limits, scratch)
        with resources.machine(devices, workers):
            seconds, size, batches = _rounds(job, computers, workers, reader, items, scratch, asked.rounds)
    rates = {stage: len(items) / statistics.median(values) for stage, values in seconds.items()}
    rates["forward"] *= batches * workers.batch_size / len(items)
    shared = 1 / sum(1 / rates[stage] for stage in STAGES[:3])
    limit = min(shared, rates["commit"]) if devices[0].type == "cpu" else min(rates[stage] for stage in STAGES)
    return {
        "model": job.model,
        "device": ",".join(map(str, devices)),
        "precision": job.precision,
        "backend": job.backend,
        "dtype": job.dtype,
        "workers": {name: getattr(workers, name) for name in Workers.__slots__},
        "images": len(items),
        "rounds": asked.rounds,
        "stages": {stage: {"images_per_second": rates[stage]} for stage in STAGES},
        "bytes_per_image": size,
        "limit": limit,
        "pipeline": rates["pipeline"],
        "share": rates["pipeline"] / limit,
    }


def _rounds(
    job: Job,
    computers: list[Computer],
    workers: Workers,
    reader: isolation.Reader,
    items: list[Item],
    scratch: Path,
    rounds: int,
) -> tuple[dict[str, list[float]], float, int]:
    """Time every stage alone, and the pipeline, round by round.

    Returns
    -------
    seconds : dict of list of float
        Of every stage and the pipeline, one a round.
    size : float
        Median bytes of an output.
    batches : int
        Full batches that the network has in a round.
    """
    alone, whole = scratch / "alone", scratch / "run"

    def writer_in(folder: Path) -> formats.Writer:
        return formats.writer(job.format, _emptied(folder), folder / UNFINISHED, computers[0].fields)

    work = Work(computers, writer_in(alone), workers.batch_size, reader)
    ready: list[Value] = [value for value in map(work.prepare, items) if not isinstance(value, Outcome)]
    if len(ready) < workers.batch_size:
        raise UsageError("Too few readable images", "Give a folder with more images, or leave out --images")
    group, room = (by_size, Room()) if job.fit == "native" else (in_order, None)
    batches = [Batch(values) for values in group(ready, workers.batch_size, lambda: False)]
    seconds: dict[str, list[float]] = {stage: [] for stage in (*STAGES, "pipeline")}
    sizes: list[int] = []
    work.compute(batches[0])  # the first pass sets things up
    middle = sorted(batches, key=_pixels)[len(batches) // 2]
    for _ in range(rounds):
        writer = writer_in(alone)
        work = Work(computers, writer, workers.batch_size, reader)
        _time(seconds["read"], workers.readers, work.prepare, items)
        _time(seconds["forward"], workers.forwards, partial(_compute, work), batches)
        computed = _renamed(work.compute(middle), items)
        written = _time(seconds["write"], workers.writers, work.write, computed)
        _time(seconds["commit"], 1, partial(_commit, work), _cut(written, writer.group))
        writer = writer_in(whole)
        began = time.perf_counter()
        outcomes = list(chain.from_iterable(pipeline.run(computers, items, writer, workers, reader, room=room)))
        seconds["pipeline"].append(time.perf_counter() - began)
        sizes = [outcome.bytes for outcome in outcomes if outcome.done]
    return seconds, statistics.median(sizes), len(batches)


def _emptied(folder: Path) -> Path:
    """Make a run's folder, or empty it."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / UNFINISHED).mkdir(parents=True)
    return folder


def _time(seconds: list[float], threads: int, function: Callable[[Any], Any], values: Iterable[Any]) -> list[Any]:
    """Have a pool process all values, and record how long it took."""
    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        results = list(pool.map(function, values))
        seconds.append(time.perf_counter() - began)
    return results


def _compute(work: Work, batch: Batch) -> int:
    """Run a batch, and keep nothing of it."""
    return len(work.compute(batch))


def _pixels(batch: Batch) -> int:
    """Count the pixels of an image of a batch."""
    return next(value.pixels.numel() for value in batch.values if isinstance(value, Ready))


def _commit(work: Work, group: Sequence[Any]) -> int:
    """Commit a group of outputs."""
    return sum(map(len, work.commit(group)))


def _cut(values: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def _renamed(computed: Sequence[Any], items: Sequence[Item]) -> list[Computed]:
    """Return the same maps for every item, each for its own file."""
    maps = _repeated(computed, len(items))
    return [replace(value, image=replace(value.image, item=item)) for value, item in zip(maps, items, strict=True)]


def _repeated(values: Sequence[Any], count: int) -> list[Any]:
    return list(chain.from_iterable([values] * -(-count // len(values))))[:count]


def _items(job: Job, count: int, scratch: Path) -> list[Item]:
    """Take images, again from the start if there are too few, or make some up."""
    if not job.inputs:
        scratch.mkdir()
        for number in range(min(count, 32)):
            _photo(number).save(scratch / f"{number}.jpg", quality=90)
    found = sources.find(job.inputs or (str(scratch),)).items
    return [
        Item(f"{number}-{item.key}", item.path, stat=item.stat) for number, item in enumerate(_repeated(found, count))
    ]


def _photo(seed: int) -> Image.Image:
    """Noise whose spectrum falls off as that of photographs does, so that decoding costs about the same."""
    width, height = PHOTO
    generator = np.random.default_rng(seed)
    y, x = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
    spectrum = 1 / np.maximum(np.hypot(x, y), 1 / width)
    phases = np.exp(2j * np.pi * generator.random((3, height, width)))
    values = np.fft.ifft2(spectrum * phases).real.transpose(1, 2, 0)
    scaled = (values - values.min()) / np.ptp(values) * 255
    return Image.fromarray(scaled.astype(np.uint8))
