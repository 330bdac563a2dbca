# Measures: the bytes that a photo's arrays take on the disk, and that a run's passes take in memory.
"""Bytes, worked out on shapes alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from msgspec import structs

from featx.dtypes import kept_in
from featx.engine.bands import taken_whole
from featx.engine.boxes import Boxes
from featx.engine.reductions import reductions_of
from featx.engine.resources import Memory, Workers
from featx.engine.tiling import IN_MEMORY
from featx.images.tiles import Tiling
from featx.models.pyramid import Blueprint
from featx.requests import Job
from featx.runs import formats
from featx.values import Field

# Bytes of a manifest line, and of a disk block: every file takes whole blocks.
LINE, BLOCK = 700, 4096

# Batches whose arrays wait to be written while others are computed.
WAITING = 2

# Copies of a photo's features of boxes that are in memory at once, as was seen with 15,000 boxes in one photo.
COPIES_OF_FEATURES = 3

# Bytes that the process takes for threads, decoders, and allocations too small to be returned to the system.
FIXED = 200_000_000


def stored_fields(
    blueprint: Blueprint,
    job: Job,
    size: tuple[int, int] | None = None,
    boxes: Boxes | None = None,
    count: int = 0,
) -> list[Field]:
    """Return the arrays that are written for a photo, with their types.

    Parameters
    ----------
    blueprint, job : Blueprint, Job
        The pyramid, and all options.
    size : (int, int) or None
        Height and width of its input; None if all photos have the same.
    boxes : Boxes or None
        The boxes whose features are kept.
    count : int
        How many boxes the photo has.
    """
    return _stored(blueprint, job, blueprint.fields_at(size or blueprint.description.traced), boxes, count)


def _stored(
    blueprint: Blueprint, job: Job, fields: Sequence[Field], boxes: Boxes | None = None, count: int = 0
) -> list[Field]:
    made = list(fields)
    for reduction in reductions_of(job, fields, blueprint.description.maps, boxes):
        made = reduction.fields(made)
    return [structs.replace(each, shape=(count, *each.shape[1:])) if each.shape[0] is None else each for each in made]


def bytes_each(
    blueprint: Blueprint,
    job: Job,
    inputs: Sequence[tuple[int, int]] = (),
    keeps: Callable[[Field], bool] = lambda _: True,
    boxes: Boxes | None = None,
    count: int = 0,
) -> int:
    """Return the mean bytes of an output.

    Parameters
    ----------
    blueprint, job : Blueprint, Job
        The pyramid, and all options.
    inputs : sequence of (int, int)
        Height and width of those of the photos; maps grow with them. Empty if all have the same.
    keeps : callable
        Whether an array is written.
    boxes, count : Boxes or None, int
        The boxes whose features are kept, and how many a photo has.
    """
    sizes = inputs or (blueprint.description.traced,)
    typical = sizes[len(sizes) // 2]  # the only one for which the network is looked at, which takes its time
    known = blueprint.fields_at(typical)

    def of(size: tuple[int, int]) -> int:
        fields = [_grown(field, typical, size) for field in known]
        return formats.bytes_of(job.format, list(filter(keeps, _stored(blueprint, job, fields, boxes, count))))

    return round(sum(times * of(size) for size, times in Counter(sizes).items()) / len(sizes))


def _grown(field: Field, size: tuple[int, int], other: tuple[int, int]) -> Field:
    """Return an array of an input of a size as it is for one of another."""
    if size == other or len(field.shape) != 3:
        return field
    sides = zip(field.lengths[1:], size, other, strict=True)
    return structs.replace(field, shape=(field.shape[0], *(round(cells * to / side) for cells, side, to in sides)))


def passed_fields(blueprint: Blueprint, job: Job, size: tuple[int, int] | None = None) -> Sequence[Field]:
    """Return the arrays that a pass gives for a photo: of a tile, maps that are made smaller later."""
    fields = blueprint.fields_at(size or blueprint.description.traced)
    tiled = job.tile is not None and taken_whole(reductions_of(job, fields, blueprint.description.maps))
    return fields if tiled else _stored(blueprint, job, fields)


def bytes_kept(blueprint: Blueprint, job: Job, size: tuple[int, int], tiling: Tiling) -> int:
    """Return the bytes that are kept of a tile until its row is complete: where tiles overlap, all of its maps."""
    whole = replace(job, dtype=kept_in(job.dtype))  # whole numbers are made later
    fields = passed_fields(blueprint, job, size) if tiling.blends else stored_fields(blueprint, whole, size)
    return sum(field.bytes for field in fields)


def bytes_waiting(
    blueprint: Blueprint, job: Job, size: tuple[int, int], passed: tuple[int, int], tiling: Tiling
) -> int:
    """Return the bytes of a picture's maps that wait on the disk until they are written; 0 where memory holds them.

    Parameters
    ----------
    blueprint, job : Blueprint, Job
        The pyramid, and all options.
    size, passed : (int, int)
        Height and width of the input, and of its tiles.
    tiling : Tiling
        How it is cut.
    """
    if not tiling.cuts(size):
        return 0
    whole = replace(job, dtype=kept_in(job.dtype))  # whole numbers are made later
    fields = [_grown(field, passed, size) for field in blueprint.fields_at(passed)]
    found = sum(field.bytes for field in _stored(blueprint, whole, fields))
    return found if found > IN_MEMORY else 0


def pass_memory(blueprint: Blueprint, workers: Workers, size: tuple[int, int] | None = None) -> int | None:
    """Bytes of a forward pass: the network's maps, and the batch as uint8 and twice as float32."""
    height, width = size or blueprint.description.traced
    found = blueprint.footprint(workers.batch_size, (height, width))
    return None if found is None else found.memory + workers.batch_size * height * width * 3 * (1 + 4 + 4)


def peak(
    blueprint: Blueprint,
    job: Job,
    one: int,
    workers: Workers,
    memory: Memory,
    size: tuple[int, int] | None = None,
    boxes: Boxes | None = None,
    count: int = 0,
) -> int:
    """Peak bytes of the process: weights, concurrent passes, images read ahead, and arrays waiting to be written.

    A pass that ends holds, on average, half of its arrays in addition to what it held before. Photos at their own size
    wait until there is room for them. `count` is how many boxes the photo has that has the most.
    """
    height, width = size or blueprint.description.traced
    weights = blueprint.description.parameters * (4 if blueprint.request.precision == "fp32" else 6)
    arrays = workers.batch_size * sum(field.bytes for field in passed_fields(blueprint, job, size))
    ahead = (2 * workers.readers + 2 * workers.batch_size) * height * width * 3
    passes = workers.forwards * (one + arrays // 2)
    with_boxes = stored_fields(blueprint, job, size, boxes, count) if boxes else []
    features = COPIES_OF_FEATURES * sum(field.bytes for field in with_boxes if field.is_of_boxes)
    whole = memory.used + FIXED + weights + passes + WAITING * arrays + features + ahead
    if blueprint.description.input.height is None and memory.left is not None and not job.force:
        return min(whole, memory.used + memory.left)
    return whole


def whole_blocks(name: str, room: int) -> int:
    """Return the bytes that an output may have for so many on the disk."""
    return room if formats.vectors_only(name) else room // BLOCK * BLOCK


def on_disk(name: str, size: int) -> int:
    """Return the bytes that one output takes on the disk, its line included."""
    return (size if formats.shares_files(name) else -(-size // BLOCK) * BLOCK) + LINE
