# Control groups: what a container may use of the machine's cores and memory, read from /proc and /sys.
"""Limits of the Linux control groups that this process is in (cgroups(7)), of both versions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def quotas(root: Path) -> Iterator[float]:
    """Yield the quotas, in cores, of the groups that this process is in, and of all their parents."""
    for folder in _groups(root, "cpu"):
        first = text_of(folder / "cpu.max").split() or [
            text for name in ("quota", "period") for text in text_of(folder / f"cpu.cfs_{name}_us").split()
        ]
        try:
            quota, period = map(int, first)
        except ValueError:  # "max", or nothing
            continue
        if quota > 0 and period > 0:
            yield quota / period


def unused_memory(root: Path) -> Iterator[int]:
    """Yield the bytes that each of these groups still allows; cached file pages that can be dropped count as unused."""
    for folder in _groups(root, "memory"):
        limit = _number(folder, "memory.max", "memory.limit_in_bytes")
        used = _number(folder, "memory.current", "memory.usage_in_bytes")
        if limit is None or used is None:
            continue
        statistics = dict(line.split() for line in text_of(folder / "memory.stat").splitlines() if line.count(" ") == 1)
        droppable = statistics.get("total_inactive_file") or statistics.get("inactive_file", "0")
        yield max(0, limit - used + int(droppable))


def text_of(path: Path) -> str:
    """Read one of the kernel's files; empty if it does not exist."""
    try:
        return path.read_text(errors="replace")
    except (OSError, ValueError):
        return ""


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the groups that this process is in for a controller, and of all above them."""
    paths = dict(_memberships(root))
    for mounted, place, controllers in _mounts(root, controller):
        path = next((paths[name] for name in controllers if name in paths), None)
        if path is None:
            continue
        # A container may see only part of the hierarchy, and its own path from outside it.
        inner = path.relative_to(mounted) if path.is_relative_to(mounted) else PurePosixPath()
        group = place / inner
        yield from (group, *group.parents[: len(inner.parts)])


def _memberships(root: Path) -> Iterator[tuple[str, PurePosixPath]]:
    """Controller, or an empty name for cgroup v2, and the path of the process's group in its hierarchy."""
    for line in text_of(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number.isdecimal() and path.startswith("/"):
            for controller in controllers.split(","):
                yield controller, PurePosixPath(path)


def _mounts(root: Path, controller: str) -> Iterator[tuple[PurePosixPath, Path, list[str]]]:
    """Where hierarchies of a controller are mounted: which part of them, where, and their controllers."""
    for line in text_of(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        places, kinds = left.split(" "), right.split(" ")
        if len(places) < 5 or len(kinds) < 3:
            continue
        mounted, place = (re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text) for text in places[3:5])
        if kinds[0] == "cgroup2":
            yield PurePosixPath(mounted), root / place.lstrip("/"), [""]
        elif kinds[0] == "cgroup" and controller in kinds[2].split(","):
            yield PurePosixPath(mounted), root / place.lstrip("/"), [controller]


def _number(folder: Path, *names: str) -> int | None:
    """Return the number in the first of these files that exists; None for ``max``, or if none exists."""
    texts = [text for name in names if (text := text_of(folder / name).strip())]
    return int(texts[0]) if texts and texts[0].isdecimal() else None
