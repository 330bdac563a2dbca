# Resources: the cores this process can use, within a container's quota, and how work is spread over them.
"""Available cores, and the work spread over them."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from featx.requests import Job

if TYPE_CHECKING:
    import torch

    from featx.engine.computing import Computer
    from featx.models.pyramid import Pyramid

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
    quotas = _quotas(root) if sys.platform == "linux" else ()
    return max(1, min((count, *map(math.ceil, quotas))))


def _quotas(root: Path) -> Iterator[float]:
    """The quotas, in cores, of the control groups that this process is in, and of all above them (cgroups(7))."""
    paths = dict(_memberships(root))
    for mounted, place, controllers in _mounts(root):
        path = next((paths[name] for name in controllers if name in paths), None)
        if path is None:
            continue
        # A container may see only part of the hierarchy, and its own path from outside it.
        inner = path.relative_to(mounted) if path.is_relative_to(mounted) else PurePosixPath()
        group = place / inner
        for folder in (group, *group.parents[: len(inner.parts)]):
            quota = _quota_of(folder)
            if quota is not None:
                yield quota


def _memberships(root: Path) -> Iterator[tuple[str, PurePosixPath]]:
    """Controller, or an empty name for cgroup v2, and the path of the process's group in its hierarchy."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number.isdecimal() and path.startswith("/"):
            for controller in controllers.split(","):
                yield controller, PurePosixPath(path)


def _mounts(root: Path) -> Iterator[tuple[PurePosixPath, Path, list[str]]]:
    """Where hierarchies that may limit cores are mounted: which part of them, where, and their controllers."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        places, kinds = left.split(" "), right.split(" ")
        if len(places) < 5 or len(kinds) < 3:
            continue
        mounted, place = (re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text) for text in places[3:5])
        if kinds[0] == "cgroup2":
            yield PurePosixPath(mounted), root / place.lstrip("/"), [""]
        elif kinds[0] == "cgroup" and "cpu" in kinds[2].split(","):
            yield PurePosixPath(mounted), root / place.lstrip("/"), ["cpu"]


def _quota_of(folder: Path) -> float | None:
    """Return how many cores a group may use; None if there is no limit, or none that can be read."""
    first = _text(folder / "cpu.max").split() or [
        text for name in ("quota", "period") for text in _text(folder / f"cpu.cfs_{name}_us").split()
    ]
    try:
        quota, period = map(int, first)
    except ValueError:  # "max", or nothing
        return None
    return quota / period if quota > 0 and period > 0 else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except (OSError, ValueError):
        return ""


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

# Concurrent passes on a GPU: while one is computed, another is copied to it and a third is copied back.
STREAMS = 3


def spread(
    pyramids: list[Pyramid],
    job: Job,
    images: int,
    earlier: dict[str, Any],
    on_note: Callable[[str], None] = lambda _: None,
) -> tuple[list[Computer], Workers]:
    """Spread the work over the machine; settings that change numbers and were not given stay as in an earlier call.

    On a CPU every core runs its own forward pass: passes of one thread do not wait for each other, and reading and
    writing use the time that remains. Passes get more threads only if there are fewer batches than cores.
    """
    from featx.engine.computing import Computer
    from featx.engine.reducing import reductions_of

    available = cores()
    batch_size = job.batch_size or earlier.get("batch_size")
    computers = [Computer(pyramid, reductions_of(job), batch_size or images, on_note) for pyramid in pyramids]
    if pyramids[0].device.type == "cpu":
        batch_size = batch_size or 1 << (min(images, LARGEST_BATCH).bit_length() - 1)
        batches = -(-images // batch_size)
        threads = earlier.get("threads") or available // (job.workers or min(available, batches)) or 1
        forwards = job.workers or max(1, available // threads)
    else:
        batch_size = batch_size or min(images, computers[0].best_batch_size())
        forwards, threads = (job.workers or STREAMS) * len(pyramids), earlier.get("threads") or 1
    for computer in computers:
        computer.largest = batch_size
    return computers, Workers(batch_size, forwards, threads, readers=available, writers=available)


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
