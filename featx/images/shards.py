# WebDataset's shards: tar files named by braces, and the keys that WebDataset gives to what is in them.
"""Shards.

A shard is a tar like any other. What tells it is how it is asked for: as WebDataset does, by ``shard-{000..127}.tar``.
Then keys are WebDataset's too, so that features can be joined with whatever else belongs to a sample.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from featx.images.walking import has_archive_suffix

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_KEY = re.compile(r"((?:.*/)?[^./]+)\.[^/]*", re.DOTALL)


def is_of_shards(text: str) -> bool:
    """Whether a text names shards."""
    return bool(_RANGE.search(text)) and has_archive_suffix(text)


def expanded(text: str) -> Iterator[str]:
    """Yield the paths that a text with ranges stands for: ``{08..10}`` for 08, 09 and 10."""
    found = _RANGE.search(text)
    if found is None:
        yield text
        return
    first, last = int(found[1]), int(found[2])
    for number in range(first, last + 1) if first <= last else range(first, last - 1, -1):
        for rest in expanded(text[found.end() :]):
            yield f"{text[: found.start()]}{number:0{len(found[1])}}{rest}"


def keys_of(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield key and name of a shard's images.

    A key is the name up to the first dot of its last piece. Where a sample has several images, as ``7.left.jpg`` and
    ``7.right.jpg``, each keeps its whole name.
    """
    samples = Counter(map(_key_of, names))
    for name in names:
        key = _key_of(name)
        yield key if samples[key] == 1 else name, name


def _key_of(name: str) -> str:
    found = _KEY.fullmatch(name)
    return found[1] if found else name
