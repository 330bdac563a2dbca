# What the machine grants this process: how many cores, where a container's quota is less than what the hardware has.
"""Cores that are there to be used."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")


def cores(root: Path = ROOT) -> int:
    """Count the cores that this process may keep busy: those it may run on, or a control group's quota if that is less.

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
        # A container may see a part of the hierarchy only, and its own path from outside of it.
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
    """Return how many cores a group may keep busy; None where there is no limit, or none that can be read."""
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
        Forward passes at a time.
    threads : int
        Threads of each; one core a pass loses nothing to waiting for each other.
    readers, writers : int
        Threads that decode, and that write.
    """

    batch_size: int
    forwards: int
    threads: int
    readers: int
    writers: int
