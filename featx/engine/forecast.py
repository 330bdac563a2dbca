# The forecast of a run: what it will write, how much memory it takes, and whether there is room for both.
"""What is known about a run before its weights are loaded."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msgspec import structs

from featx.engine import resources
from featx.engine.boxes import Boxes
from featx.engine.reducing import reductions_of
from featx.engine.resources import Memory, Workers
from featx.errors import FeatxError, ModelError, OutputError
from featx.images import coverage, headers
from featx.models import catalogue
from featx.models.pyramid import Blueprint, draw_up
from featx.requests import Job
from featx.runs import formats
from featx.text import amount_of, images
from featx.values import Field, Input, Item

# Bytes of a manifest line, and of a disk block: every file takes whole blocks.
LINE, BLOCK = 700, 4096

# Batches whose arrays wait to be written while others are computed.
WAITING = 2

# Bytes that the process takes for threads, decoders, and allocations too small to be returned to the system.
FIXED = 200_000_000

# A forecast of memory is never too low, and too high by up to this factor; a run is refused only beyond it.
MARGIN = 1.25

# In the search for a size that fits, sides are multiples of the first; it ends within one part in the second.
SIDE, PRECISION = 32, 20


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run will write, and how much memory it will take.

    Attributes
    ----------
    input : Input
        The model's input.
    images : int
        To be computed now.
    bytes_per_image, bytes : int
        Of the output of one, and of all of them.
    free : int or None
        Free bytes on the disk of the run's folder.
    pass_memory : int or None
        Bytes that one forward pass takes; None where the network cannot be looked into, or nothing is to do.
    memory : int or None
        Bytes that the whole process will take at most; None on a GPU, where passes shrink until they fit.
    available_memory : int or None
        Bytes that it may take; None where the system does not say.
    batch_size, forwards : int or None
        Images in a pass, and concurrent passes; None on a GPU, where they are found by trying.
    photo : (int, int) or None
        Width and height of a typical photo among the images; None where that is not known.
    seen : float or None
        The share of its area that the model sees.
    """

    input: Input
    images: int
    bytes_per_image: int
    bytes: int
    free: int | None
    pass_memory: int | None
    memory: int | None
    available_memory: int | None
    batch_size: int | None
    forwards: int | None
    photo: tuple[int, int] | None
    seen: float | None


def foresee(
    blueprint: Blueprint,
    job: Job,
    items: Sequence[Item],
    output: Path,
    workers: Workers | None,
    boxes: Boxes | None = None,
) -> Forecast:
    """Work out what a run will write, and how much memory it will take.

    Parameters
    ----------
    blueprint : Blueprint
        The pyramid.
    job : Job
        All options.
    items : sequence of Item
        The images to compute.
    output : Path
        The run's folder, which need not exist.
    workers : Workers or None
        How the work is spread over a processor; None for a GPU.
    boxes : Boxes or None
        Those whose features are kept.
    """
    fields = stored_fields(blueprint, job, boxes, boxes.mean(items) if boxes else 0)
    each = formats.bytes_of(job.format, fields)
    photo, memory = headers.typical_size(items), resources.memory()
    one = pass_memory(blueprint, workers) if workers and items else None
    return Forecast(
        input=blueprint.description.input,
        images=len(items),
        bytes_per_image=each,
        bytes=each * len(items),
        free=_free(output),
        pass_memory=one,
        memory=_peak(blueprint, fields, one, workers, memory) if one and workers else None,
        available_memory=None if memory.left is None else memory.used + memory.left,
        batch_size=workers.batch_size if workers else None,
        forwards=workers.forwards if workers else None,
        photo=photo,
        seen=coverage.seen(blueprint.description.input, photo) if photo else None,
    )


def stored_fields(blueprint: Blueprint, job: Job, boxes: Boxes | None = None, count: int = 0) -> list[Field]:
    """Return the arrays that are written, with their types, for a photo with that many boxes."""
    fields = list(blueprint.description.fields)
    for reduction in reductions_of(job, fields, blueprint.description.levels, boxes):
        fields = reduction.fields(fields)
    return [structs.replace(each, shape=(count, *each.shape[1:])) if each.shape[0] is None else each for each in fields]


def require_room(forecast: Forecast, blueprint: Blueprint, job: Job, output: Path, workers: Workers | None) -> None:
    """Refuse a run that cannot fit into memory or onto the disk.

    Raises
    ------
    ModelError
        If it does not fit into memory; the error names both figures, and what would fit.
    OutputError
        If its output exceeds the free space; the error names both figures, and what would save how much.
    """
    if job.force:
        return
    needed, available = forecast.memory, forecast.available_memory
    if workers and needed and available is not None and needed > available * MARGIN:
        raise ModelError(
            f"{blueprint.description.name} at {_size(blueprint)} takes about {amount_of(needed)} of memory, and "
            f"{amount_of(available)} are available",
            f"{_smaller(blueprint, job, workers, available)}; --force tries it all the same",
        )
    on_disk = _on_disk(job.format, forecast.bytes_per_image) * forecast.images
    if forecast.free is not None and on_disk > forecast.free:
        raise OutputError(
            f"The features of {images(forecast.images)} take {amount_of(on_disk)}, and {amount_of(forecast.free)} are "
            f"free for {output}",
            f"{_savings(blueprint, job, forecast.images)}; --force begins all the same",
        )


def pass_memory(blueprint: Blueprint, workers: Workers) -> int | None:
    """Bytes of a forward pass: the network's maps, and the batch as uint8 and twice as float32."""
    feed, maps = blueprint.description.input, blueprint.memory_of_pass(workers.batch_size)
    return None if maps is None else maps + workers.batch_size * feed.height * feed.width * 3 * (1 + 4 + 4)


def _peak(blueprint: Blueprint, fields: Sequence[Field], one: int, workers: Workers, memory: Memory) -> int:
    """Peak bytes of the process: weights, concurrent passes, images read ahead, and arrays waiting to be written.

    A pass that ends holds, on average, half of its arrays in addition to what it held before.
    """
    feed = blueprint.description.input
    weights = blueprint.description.parameters * (4 if blueprint.request.precision == "fp32" else 6)
    arrays = workers.batch_size * sum(field.bytes for field in fields)
    ahead = (2 * workers.readers + 2 * workers.batch_size) * feed.height * feed.width * 3
    passes = workers.forwards * (one + arrays // 2)
    return memory.used + FIXED + weights + passes + WAITING * arrays + ahead


def tight(forecast: Forecast) -> list[str]:
    """Warn of a run that may not fit into memory, although that is not certain enough to refuse it."""
    needed, available = forecast.memory, forecast.available_memory
    if needed is None or available is None or needed <= available:
        return []
    return [f"The run may not fit into memory: {amount_of(needed)} at most; --batch-size and --workers reduce it"]


def _free(output: Path) -> int | None:
    """Return the free bytes where a folder is, or will be."""
    place = output.absolute()
    for folder in (place, *place.parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return None


def _on_disk(name: str, size: int) -> int:
    """Return the bytes that one output takes on the disk, its line included."""
    return (size if formats.vectors_only(name) else -(-size // BLOCK) * BLOCK) + LINE


def _smaller(blueprint: Blueprint, job: Job, workers: Workers, available: int) -> str:
    """Say what would fit: one image at a time, or the nearest size."""
    said = []
    single = replace(workers, batch_size=1, forwards=1)
    if workers != single and (needed := _memory(blueprint, job, single)) and needed <= available:
        said.append(f"--batch-size 1 --workers 1 takes {amount_of(needed)}")
    if (fitting := _largest_size(blueprint, job, workers, available)) is not None:
        said.append(f"the largest size that fits is --image-size {fitting}")
    text = ", and ".join(said) or "use a smaller model"
    return text[0].upper() + text[1:]


def _memory(blueprint: Blueprint, job: Job, workers: Workers) -> int | None:
    one = pass_memory(blueprint, workers)
    return one and _peak(blueprint, stored_fields(blueprint, job), one, workers, resources.memory())


def _largest_size(blueprint: Blueprint, job: Job, workers: Workers, available: int) -> str | None:
    """Find the largest size of the same shape that fits, to within a twentieth."""
    feed = blueprint.description.input
    longer = max(feed.height, feed.width)
    step = _step(blueprint)
    fits, too_large, found = 0, longer // step + 1, ""
    while too_large - fits > max(1, fits // PRECISION):
        tried = (fits + too_large) // 2
        height, width = (max(1, tried * side // longer) * step for side in (feed.height, feed.width))
        if _fits(blueprint, job, workers, (height, width), available):
            fits, found = tried, f"{height}" if height == width else f"{height}x{width}"
        else:
            too_large = tried
    return found or None


def _step(blueprint: Blueprint) -> int:
    """Return the step of the input sides to try."""
    models = catalogue.read()
    known = models.entries.get(blueprint.description.architecture) if models else None
    multiple = ((known or {}).get("sizes") or {}).get("multiple", 1)
    return math.lcm(multiple, SIDE) if multiple <= SIDE else int(multiple)


def _fits(blueprint: Blueprint, job: Job, workers: Workers, size: tuple[int, int], available: int) -> bool:
    try:
        smaller = draw_up(replace(blueprint.request, image_size=size, test_size=False))
    except FeatxError:  # the network does not take this size
        return False
    needed = _memory(smaller, job, workers)
    return needed is not None and needed <= available


def _savings(blueprint: Blueprint, job: Job, count: int) -> str:
    """Say what other options would write."""
    said = [
        f"{options} writes {amount_of(_on_disk(job.format, size) * count)}"
        for options, size in _alternatives(blueprint, job)
    ]
    return ", ".join(said) or "Free some space, or choose another folder with --output"


def _alternatives(blueprint: Blueprint, job: Job) -> Iterator[tuple[str, int]]:
    """Yield options that write less, and the bytes of an output with them; boxes take little."""
    if job.boxes:
        return
    fields = stored_fields(blueprint, job)
    if job.dtype == "float32" and not all(field.is_vector for field in fields):
        halved = stored_fields(blueprint, replace(job, dtype="float16"))
        yield "--dtype float16", formats.bytes_of(job.format, halved)
    levels = blueprint.description.levels
    strides = sorted({level.stride for level in levels if isinstance(level.stride, int | float)})
    if len(strides) > 2 and job.maps and job.part != "all":
        coarse = strides[len(strides) // 2 :]
        finer = {level.key for level in levels if level.stride not in coarse}
        fewer = [field for field in fields if field.key.removesuffix("_prefix") not in finer]
        yield f"--strides {','.join(f'{stride:g}' for stride in coarse)}", formats.bytes_of(job.format, fewer)
    if job.maps or job.final:
        try:
            vector = draw_up(_only_embedding(blueprint.request))
        except FeatxError:  # it has none
            return
        yield "--no-maps --embedding", formats.bytes_of(job.format, stored_fields(vector, job))


def _only_embedding(request: Any) -> Any:
    chosen = {"out_indices": None, "strides": None, "norm": False, "prefix_tokens": False, "final": False}
    return replace(request, **chosen, maps=False, embedding=True)


def _size(blueprint: Blueprint) -> str:
    feed = blueprint.description.input
    return f"{feed.height} x {feed.width}"
