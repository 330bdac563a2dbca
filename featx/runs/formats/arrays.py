# Arrays as formats store them: their bytes, their sha256, and embeddings that are read one by one.
"""What several formats do with the arrays of an image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import numpy as np

from featx.runs.formats import Array, Reader
from featx.values import EMBEDDING

# Vectors that are read together.
BLOCK = 1024


def bytes_in(values: Array) -> memoryview:
    """Return the bytes of an array's values, in C's order."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def digest_of(arrays: Mapping[str, Array]) -> str:
    """Return the sha256 of all values of an image; that of nothing, where there are none."""
    hashed = hashlib.sha256()
    for values in arrays.values():
        hashed.update("\0".join(values).encode() if values.dtype.kind == "U" else bytes_in(values))
    return hashed.hexdigest()


def vectors_of(reader: Reader, places: Iterable[tuple[str, str]]) -> Iterator[tuple[list[str], Array]]:
    """Read embeddings one by one, which are copied: those that are mapped keep a file open each."""
    rest = iter(places)
    while block := list(islice(rest, BLOCK)):
        vectors = [np.array(reader.read(key, output, [EMBEDDING])[EMBEDDING]) for key, output in block]
        yield [key for key, _ in block], np.stack(vectors)
