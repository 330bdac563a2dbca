# Shards: the images of a run divided among the tasks of a job array, by a hash of their keys.
"""``--shard``: which part of the images is meant, and whether one is in it."""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any, ClassVar

from msgspec import Struct

from featx.declaring import Options, group, option
from featx.errors import UsageError

# A larger number is a typing error.
MOST = 1_000_000

_WRITTEN = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")

NUMBERS = "Write the number of this task and of all: --shard 3/16"


class Shard(Struct, frozen=True):
    """One of `count` parts of a run's images; together they are all of them, and no two share one.

    Attributes
    ----------
    number : int
        From 1 to `count`.
    count : int
        How many there are.
    """

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def name(self) -> str:
        """Its name in a folder; those of one count sort by their numbers."""
        return f"{self.number:0{len(str(self.count))}}-of-{self.count}"

    @property
    def remainder(self) -> int:
        """What numbers that belong to it leave, divided by `count`."""
        return self.number % self.count

    def has(self, key: str) -> bool:
        """Whether the image with a key is in it: the same on every machine, in any order, at any time."""
        digest = hashlib.sha256(key.encode(errors="surrogatepass")).digest()
        return self.has_number(int.from_bytes(digest[:8]))

    def has_number(self, number: int) -> bool:
        """Whether a number belongs to it, such as that of a file."""
        return number % self.count == self.remainder


# All images, and all numbers.
WHOLE = Shard(1, 1)


def as_shard(name: str, value: Any) -> Shard:
    """Expect ``3/16``, or ``slurm`` for the task of a Slurm job array; 0/16 is 16/16."""
    if isinstance(value, Shard):
        return value
    if value == "slurm":
        return _of_slurm(name)
    found = _WRITTEN.fullmatch(str(value))
    number, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not number <= count <= MOST or not count:
        raise UsageError(f"{name}: expected a shard of how many, such as 3/16, or slurm, not {value!r}")
    return Shard(number or count, count)


def _of_slurm(name: str) -> Shard:
    """Read which task of a job array this is, of an array with equal steps: 0-15, 1-16, 0-30:2."""
    found = {fact: os.environ.get(f"SLURM_ARRAY_TASK_{fact}", "") for fact in ("ID", "MIN", "MAX", "STEP", "COUNT")}
    if not found["ID"]:
        raise UsageError(f"{name} slurm: SLURM_ARRAY_TASK_ID is not set, so this is no task of a job array", NUMBERS)
    try:
        task, first, last = (int(found[fact]) for fact in ("ID", "MIN", "MAX"))
        step = int(found["STEP"] or 1)
        place, rest = divmod(task - first, step)
        count = (last - first) // step + 1
        regular = not rest and 0 <= place < count <= MOST and int(found["COUNT"] or count) == count
    except (ValueError, ZeroDivisionError):
        regular = False
    if not regular:
        said = ", ".join(f"{fact} {text}" for fact, text in found.items() if text)
        raise UsageError(f"{name} slurm: the numbers of the job array have gaps (SLURM_ARRAY_TASK_…: {said})", NUMBERS)
    return Shard(place + 1, count)


@group
class ShardOptions(Options):
    """Which part of the images a call is for."""

    panel: ClassVar[str] = "Output"

    shard: Shard | None = option(
        default=None,
        help="Compute part I of N of the images, so that N tasks of a job array, on any machines, fill one folder at "
        "once; slurm reads I and N from the task.",
        convert=as_shard,
        metavar="I/N|slurm",
        accepts="str | None",
    )
