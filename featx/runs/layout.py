# The layout of a run's folder: what its files are called, and the output of every key.
"""Names that no file system trips over."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from functools import cache

from msgspec.structs import replace

from featx.paths import fold
from featx.values import Item

# What formats for vectors call their files.
VECTORS, KEYS = "embeddings.npy", "keys.txt"

# What the run itself keeps in its folder; the folders of outputs stay clear of these names.
SUMMARY, MANIFEST, UNFINISHED, LEASE = "summary.json", "manifest.jsonl", ".unfinished", ".lease"

# The components that its maps are projected on.
BASIS = "basis.npz"

# The folder of the manifests of shards.
PARTS = "manifest.parts"

# The one file among what is unfinished that is kept until it is dealt with: the images that a run ended with.
KEPT = "suspects"

# What the folders among it end with that belong to workers in other processes.
OF_WORKER = ".worker"

# Bytes in one name, on nearly every file system.
LONGEST = 255

_OURS = "|".join(map(re.escape, (SUMMARY, MANIFEST, UNFINISHED, LEASE, PARTS)))


def output_of(key: str, suffix: str = ".npz", *, apart: bool = False) -> str:
    """Name the output of a key: the key itself and a suffix, unless that cannot be.

    Parameters
    ----------
    key : str
        A relative path with forward slashes, without empty pieces and ``..``.
    suffix : str
        Of the format's files.
    apart : bool
        Whether another key's output could be taken for the same; a part of the key's sha256 then makes the difference.

    Returns
    -------
    str
        Every name in it fits into `LONGEST` bytes, and no folder has the name of an output, or of the run's own files.
    """
    *folders, name = key.split("/")
    places = [_fitted(folder, "~" if _taken(suffix).fullmatch(folder) else "", "") for folder in folders]
    apart = apart or f"{key}{suffix}".casefold() == BASIS
    return "/".join([*places, _fitted(name, _mark(key) if apart else "", suffix)])


def tell_apart(items: list[Item], places: Iterable[int], suffix: str) -> None:
    """Give items, in place, outputs that differ on every file system, even where it takes their keys for the same."""
    for place in places:
        item = items[place]
        if item.key != fold(item.key):  # whichever of them comes first
            items[place] = replace(item, alias=output_of(item.key, suffix, apart=True))


def is_inside(output: str) -> bool:
    """Whether a name out of a manifest, which anybody could have written, stays in the run's folder."""
    return not output.startswith("/") and (".." not in output or ".." not in output.split("/"))


@cache
def _taken(suffix: str) -> re.Pattern[str]:
    """Match names that folders stay clear of."""
    return re.compile(rf"(.*{re.escape(suffix)}|{_OURS})~*", re.IGNORECASE | re.DOTALL)


def _fitted(name: str, mark: str, suffix: str) -> str:
    """Put a name together; one that is too long loses its end to a part of its sha256."""
    whole = f"{name}{mark}{suffix}"
    if len(whole.encode()) <= LONGEST:
        return whole
    mark = mark if len(mark) > 1 else _mark(name)
    room = LONGEST - len(f"{mark}{suffix}")
    return f"{name.encode()[:room].decode(errors='ignore')}{mark}{suffix}"


def _mark(text: str) -> str:
    return f"~{hashlib.sha256(text.encode()).hexdigest()[:16]}"
