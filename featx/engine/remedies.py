# Remedies: a run that does not fit into memory or onto the disk is refused, and the error says what would fit.
"""Room for a run, before its weights are loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx.engine import proposals, resources
from featx.engine.measures import on_disk, pass_memory, peak, stored_fields
from featx.engine.resources import Workers
from featx.engine.room import Needs, Room, available
from featx.engine.sizes import Sizes
from featx.errors import FeatxError, ModelError, OutputError
from featx.images.tiles import Tiling
from featx.models import catalogue
from featx.models.pyramid import Blueprint, draw_up
from featx.requests import Job
from featx.runs import formats
from featx.text import amount_of, images

if TYPE_CHECKING:
    from featx.engine.forecast import Forecast

# In the search for a size that fits, sides are multiples of the first; it ends within one part in the second.
SIDE, PRECISION = 32, 20

# Options that are proposed where the disk has no room.
SAID = ("--strides", "--grid 7", "--components 64", "--dtype float16")

# A forecast of memory is never too low, and too high by up to this factor; a run is refused only beyond it.
MARGIN = 1.25


def require_room(
    forecast: Forecast,
    blueprint: Blueprint,
    job: Job,
    output: Path,
    workers: Workers | None,
    tiling: Tiling | None = None,
) -> None:
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
    needed, there = forecast.memory, forecast.available_memory
    if workers and blueprint.description.input.height is None:
        _require_room_for_photo(forecast, blueprint, workers, tiling)
    elif workers and needed and there is not None and needed > there * MARGIN:
        raise ModelError(
            f"{blueprint.description.name} at {_size(blueprint)} takes about {amount_of(needed)} of memory, and "
            f"{amount_of(there)} are available",
            f"{_smaller(blueprint, job, workers, there)}; --force tries it all the same",
        )
    size = on_disk(job.format, forecast.bytes_per_image) * forecast.images
    what = f"The features of {images(forecast.images)} take {amount_of(size)}"
    if forecast.free is not None and size + forecast.waiting > forecast.free:
        if forecast.waiting:
            what += f", maps of tiles another {amount_of(forecast.waiting)} until they are written"
        raise OutputError(
            f"{what}, and {amount_of(forecast.free)} are free for {output}",
            f"{_savings(blueprint, job, forecast.images)}; --force begins all the same",
        )
    if job.max_disk is not None and size > job.max_disk:
        fits = " or ".join(each.options for each in forecast.fitting[:3])
        hint = f"These fit: {fits}" if fits else _savings(blueprint, job, forecast.images)
        raise OutputError(f"{what}, more than --max-disk {amount_of(job.max_disk)}", hint)


def _require_room_for_photo(forecast: Forecast, blueprint: Blueprint, workers: Workers, tiling: Tiling | None) -> None:
    """Refuse a run whose typical photo, at its own size, does not fit into memory by itself."""
    if forecast.photo is None or forecast.available_memory is None:
        return
    name, (width, height) = blueprint.description.name, forecast.photo
    room = Room(Needs(blueprint, workers.batch_size, on_cpu=True), available())
    if refusal := room.refusal(*Sizes.of(blueprint, [(width, height)], tiling).passed, tiled=tiling is not None):
        raise ModelError(f"{name} cannot take a photo of {width} x {height} pixels: {refusal}", "--force tries it")


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
    return one and peak(blueprint, job, one, workers, resources.memory())


def _largest_size(blueprint: Blueprint, job: Job, workers: Workers, available: int) -> str | None:
    """Find the largest size of the same shape that fits, to within a twentieth."""
    own, step = blueprint.description.traced, _step(blueprint)
    longer = max(own)
    fits, too_large, found = 0, longer // step + 1, ""
    while too_large - fits > max(1, fits // PRECISION):
        tried = (fits + too_large) // 2
        height, width = (max(1, tried * side // longer) * step for side in own)
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
        f"{options} writes {amount_of(on_disk(job.format, size) * count)}"
        for options, size in _alternatives(blueprint, job)
    ]
    return ", ".join(said) or "Free some space, or choose another folder with --output"


def _alternatives(blueprint: Blueprint, job: Job) -> Iterator[tuple[str, int]]:
    """Yield options that write less, and the bytes of an output with them; boxes take little."""
    if job.boxes:
        return
    found = proposals.alone(blueprint, job)
    yield from ((each.options, each.bytes) for each in found if each.options.startswith(SAID))
    if job.maps or job.final or job.modules:
        try:
            vector = draw_up(_only_embedding(blueprint.request))
        except FeatxError:  # it has none
            return
        yield "--no-maps --embedding", formats.bytes_of(job.format, stored_fields(vector, job))


def _only_embedding(request: Any) -> Any:
    of_levels = dict.fromkeys(("norm", "prefix_tokens", "attention", "final"), False)
    return replace(request, **of_levels, modules=None, out_indices=None, strides=None, maps=False, embedding=True)


def _size(blueprint: Blueprint) -> str:
    height, width = blueprint.description.traced
    return f"{height} x {width}"
