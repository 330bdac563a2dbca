# Resources: the cores and memory this process can use, within a container's limits, and how work is spread over them.
"""Available cores and memory, and the work spread over them."""

from __future__ import annotations

import math
import os
import resource
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx.engine import groups
from featx.paths import is_url
from featx.requests import Job
from featx.values import Item

if TYPE_CHECKING:
    import torch

    from featx.engine.boxes import Boxes
    from featx.engine.computing import Computer
    from featx.models.pyramid import Pyramid
    from featx.runs.basis import Basis

ROOT = Path("/")


def cores(root: Path = ROOT) -> int:
    """Count the cores that this process can use: those it may run on, or a control group's quota if that is less.

    Parameters
    ----------
    root : Path
        Where ``/proc`` and ``/sys`` lie.

    Returns
    -------
    int
        1 or more; half a core of quota counts as one.
    """
    count = getattr(os, "process_cpu_count", os.cpu_count)() or 1  # Python 3.13's, which PYTHON_CPU_COUNT sets
    if hasattr(os, "sched_getaffinity"):
        count = min(count, len(os.sched_getaffinity(0)))
    quotas = groups.quotas(root) if sys.platform == "linux" else ()
    return max(1, min((count, *map(math.ceil, quotas))))


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of this process, in bytes.

    Attributes
    ----------
    used : int
        What it occupies now.
    left : int or None
        What it can still get before the system, its container or its own limit refuses; None where unknown.
    """

    used: int
    left: int | None


def memory(root: Path = ROOT) -> Memory:
    """Look up this process's memory; swap does not count, since a run that swaps hardly makes progress."""
    own = _kilobytes(root / "proc/self/status")
    limits = [
        _kilobytes(root / "proc/meminfo").get("MemAvailable"),
        *(groups.unused_memory(root) if sys.platform == "linux" else ()),
    ]
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    if soft != resource.RLIM_INFINITY and "VmSize" in own:
        limits.append(max(0, soft - own["VmSize"]))
    known = [limit for limit in limits if limit is not None]
    return Memory(own.get("VmRSS", 0), min(known) if known else None)


def _kilobytes(path: Path) -> dict[str, int]:
    """Read one of the kernel's tables of sizes, in bytes."""
    rows = (line.replace(":", " ").split() for line in groups.text_of(path).splitlines())
    return {row[0]: int(row[1]) * 1024 for row in rows if row[-1:] == ["kB"] and len(row) == 3}


@dataclass(frozen=True, slots=True)
class Workers:
    """How a run is spread over the machine.

    Attributes
    ----------
    batch_size : int
        Images in one forward pass.
    forwards : int
        Number of concurrent forward passes.
    threads : int
        Threads of each; with one core per pass, no time is lost waiting.
    readers, writers : int
        Threads that decode, and that write.
    """

    batch_size: int
    forwards: int
    threads: int
    readers: int
    writers: int


# Largest batch that still speeds up a CPU; measured on ResNet-50 at 224, one thread per pass.
LARGEST_BATCH = 8

# Photos of one size in a pass on a GPU, where each has its own size.
OF_ONE_SIZE = 8

# Threads that read remote images.
WAITING = 16

# Concurrent passes on a GPU: while one is computed, another is copied to it and a third is copied back.
STREAMS = 3


def workers_on_cpu(job: Job, images: int, earlier: dict[str, Any]) -> Workers:
    """Spread the work over a processor; settings that change numbers and were not given stay as in an earlier call.

    Every core runs its own forward pass: passes of one thread do not wait for each other, and reading and writing use
    the time that remains. Passes get more threads only if there are fewer batches than cores. Photos at their own size
    are passed one by one: passes of eight were no faster, and few photos have the same size.
    """
    available = cores()
    largest = 1 if job.fit == "native" else LARGEST_BATCH
    batch_size = job.batch_size or earlier.get("batch_size") or 1 << (min(images, largest).bit_length() - 1)
    batches = -(-images // batch_size)
    threads = earlier.get("threads") or available // (job.workers or min(available, batches)) or 1
    forwards = job.workers or max(1, available // threads)
    return Workers(batch_size, forwards, threads, readers=available, writers=available)


def overlapping(workers: Workers, items: Iterable[Item]) -> Workers:
    """Have more threads read where images come from elsewhere: they mostly wait, all of them at the same time."""
    if not any(is_url(item.path) for item in items):
        return workers
    return replace(workers, readers=max(workers.readers, workers.forwards, WAITING))


def spread(
    pyramids: list[Pyramid],
    job: Job,
    images: int,
    earlier: dict[str, Any],
    on_note: Callable[[str], None] = lambda _: None,
    boxes: Boxes | None = None,
    basis: Basis | None = None,
) -> tuple[list[Computer], Workers]:
    """Spread the work over the machine; see `workers_on_cpu`. A GPU's batch size is found by trying."""
    from featx.engine.computing import Computer
    from featx.engine.reductions import reductions_of

    batch_size = job.batch_size or earlier.get("batch_size")
    reductions = reductions_of(job, pyramids[0].fields, pyramids[0].maps, boxes, basis)
    computers = [Computer(pyramid, reductions, batch_size or images, on_note) for pyramid in pyramids]
    if pyramids[0].device.type == "cpu":
        workers = workers_on_cpu(job, images, earlier)
    else:
        available = cores()
        if not batch_size:
            batch_size = min(images, OF_ONE_SIZE if job.fit == "native" else computers[0].best_batch_size())
        forwards, threads = (job.workers or STREAMS) * len(pyramids), earlier.get("threads") or 1
        workers = Workers(batch_size, forwards, threads, readers=available, writers=available)
    for computer in computers:
        computer.largest = workers.batch_size
    return computers, workers


def use_backend(computers: Sequence[Computer], workers: Workers) -> None:
    """Have each network run by the requested backend from now on."""
    for computer in computers:
        computer.pyramid.use_backend(workers.batch_size, workers.forwards, workers.threads, computer.on_note)


@contextmanager
def machine(devices: Sequence[torch.device], workers: Workers) -> Iterator[None]:
    """Set the process-wide settings of torch and Pillow for the duration of the run."""
    import torch
    from PIL import Image

    from featx.images.decoding import lift_pillow_limit
    from featx.process import full_precision

    threads, pixels = torch.get_num_threads(), lift_pillow_limit()
    torch.set_num_threads(workers.threads)
    try:
        with full_precision(devices[0]):
            yield
    finally:
        torch.set_num_threads(threads)
        Image.MAX_IMAGE_PIXELS = pixels
