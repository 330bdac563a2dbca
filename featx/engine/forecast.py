# The forecast of a run: what it will write, and how much memory it takes.
"""What is known about a run before its weights are loaded."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featx.engine import proposals, resources
from featx.engine.boxes import Boxes
from featx.engine.measures import bytes_each, bytes_kept, bytes_waiting, on_disk, pass_memory, peak, whole_blocks
from featx.engine.proposals import Proposal
from featx.engine.resources import Workers
from featx.engine.sizes import Sizes
from featx.engine.tiling import beside_passes
from featx.images import coverage, headers
from featx.images.tiles import Tiling
from featx.models.pyramid import Blueprint
from featx.requests import Job
from featx.runs import formats
from featx.runs.mirror import mirror_of
from featx.text import amount_of
from featx.values import Input, Item

# Photos that are looked at where each has its own size.
MANY = 256

# How often rows that are committed are in memory: as they were computed, as a table, and as a file.
COPIES = 3


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
    largest : (int, int) or None
        Those of the largest photo of a sample, where photos keep their own sizes.
    seen : float or None
        The share of its area that the model sees.
    tiles : (int, int, int, int) or None
        Where large photos are cut: side and halo of a tile, how many tiles the largest one has, and the longer side of
        what is seen of one.
    waiting : int
        Bytes of the maps of the largest one that wait on the disk until they are written, beside the output.
    elsewhere : bool
        Whether other processes compute it, perhaps on other machines, whose memory is not known.
    savings, fitting : tuple of Proposal
        Of a dry run, what each option that makes maps smaller would write for all images; where there is a limit, which
        options would keep to it, those that keep the most first.
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
    largest: tuple[int, int] | None
    seen: float | None
    tiles: tuple[int, int, int, int] | None = None
    waiting: int = 0
    elsewhere: bool = False
    savings: tuple[Proposal, ...] = ()
    fitting: tuple[Proposal, ...] = ()


def foresee(
    blueprint: Blueprint,
    job: Job,
    items: Sequence[Item],
    output: Path,
    workers: Workers | None,
    boxes: Boxes | None = None,
    tiling: Tiling | None = None,
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
    tiling : Tiling or None
        How large photos are cut.
    """
    feed, memory = blueprint.description.input, resources.memory()
    sample = MANY if feed.height is None else headers.SAMPLE
    sizes = Sizes.of(blueprint, headers.sizes_of(items, sample, job.limits), tiling)
    each = bytes_each(blueprint, job, sizes.inputs, boxes=boxes, count=boxes.mean(items) if boxes else 0)
    one = pass_memory(blueprint, workers, sizes.passed) if workers and items else None
    held = COPIES * formats.bytes_held(job.format, each, len(items))
    most = boxes.most(items) if boxes else 0
    whole = peak(blueprint, job, one, workers, memory, sizes.passed, boxes, most) if one and workers else None
    if whole is not None and tiling and tiling.cuts(sizes.largest):
        whole += beside_passes(tiling, sizes.largest, bytes_kept(blueprint, job, sizes.passed, tiling))
    return Forecast(
        input=feed,
        images=len(items),
        bytes_per_image=each,
        bytes=each * len(items),
        free=_free(output),
        pass_memory=one,
        memory=None if whole is None else whole + held,
        available_memory=None if memory.left is None else memory.used + memory.left,
        batch_size=workers.batch_size if workers else None,
        forwards=workers.forwards if workers else None,
        photo=sizes.photo,
        largest=sizes.largest_photo,
        seen=coverage.seen(feed, sizes.photo) if sizes.photo else None,
        tiles=(tiling.tile, tiling.halo, tiling.count(sizes.largest), max(sizes.passed)) if tiling else None,
        waiting=bytes_waiting(blueprint, job, sizes.largest, sizes.passed, tiling) if tiling and items else 0,
        elsewhere=job.engine != "local",
        **_proposals(blueprint, job, len(items), each, sizes),
    )


def _proposals(blueprint: Blueprint, job: Job, count: int, each: int, sizes: Sizes) -> dict[str, tuple[Proposal, ...]]:
    """Return what would be written with other options, where that is asked for."""

    def of_all(found: list[Proposal]) -> tuple[Proposal, ...]:
        return tuple(Proposal(proposal.options, proposal.bytes * count) for proposal in found)

    limit = job.max_disk
    too_much = limit is not None and on_disk(job.format, each) * count > limit
    room = (limit or 0) // max(1, count) - on_disk(job.format, 0)  # for each output, in whole blocks
    fits = proposals.fitting(blueprint, job, whole_blocks(job.format, room), sizes.inputs) if too_much else []
    saves = proposals.alone(blueprint, job, sizes.inputs) if job.dry_run else []
    return {"savings": of_all(saves), "fitting": of_all(fits)}


def tight(forecast: Forecast) -> list[str]:
    """Warn of a run that may not fit into memory, although that is not certain enough to refuse it."""
    needed, there = forecast.memory, forecast.available_memory
    if needed is None or there is None or needed <= there:
        return []
    return [f"The run may not fit into memory: {amount_of(needed)} at most; --batch-size and --workers reduce it"]


def _free(output: Path) -> int | None:
    """Return the free bytes where a folder is, or will be; nobody knows those of an object store."""
    if mirror_of(output):
        return None
    place = output.absolute()
    for folder in (place, *place.parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return None
