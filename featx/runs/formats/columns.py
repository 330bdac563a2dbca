# Columns of a table: how an image's arrays become its rows and come back from them, and how a table is encoded.
"""The columns of one image."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from featx.runs.formats import Array
from featx.values import BOXES, EMBEDDING

FLOAT32 = np.dtype("<f4")

# The columns of the array `BOXES`, and of the arrays beside it.
EDGES = ("x1", "y1", "x2", "y2")
BESIDE = {"box_ids": "id", "box_labels": "label", "box_seen": "seen"}

# The suffix, after a level's name, of the array with the features of boxes.
SUFFIX = "_boxes"


def columns_of(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return the columns that differ among the n rows of an image: (n,) values, or (n, C) vectors."""
    columns: dict[str, Array] = {}
    for key, values in arrays.items():
        if key == BOXES:
            columns |= dict(zip(EDGES, np.ascontiguousarray(values.T), strict=True))
        elif key in BESIDE:
            columns[BESIDE[key]] = values
        else:
            vectors = values[None] if values.ndim == 1 else values[:, :, 0, 0]
            columns[key.removesuffix(SUFFIX)] = np.ascontiguousarray(vectors, FLOAT32)
    return columns


def arrays_of(columns: Mapping[str, Array]) -> dict[str, Array]:
    """Return the arrays of an image's columns, as they were given to `columns_of`."""
    if EDGES[0] not in columns:
        return {EMBEDDING: columns[EMBEDDING][0]}
    arrays = {BOXES: np.stack([columns[name] for name in EDGES], axis=1)}
    arrays |= {key: columns[name] for key, name in BESIDE.items()}
    vectors = {name: values for name, values in columns.items() if values.ndim == 2}
    return arrays | {f"{name}{SUFFIX}": values[:, :, None, None] for name, values in vectors.items()}


def encoding_of(names: Iterable[str], texts: Collection[str], vectors: Collection[str]) -> dict[str, Any]:
    """Return how pyarrow is to encode a table: texts are compressed, numbers are not, every page has a checksum."""
    compression = {
        f"{name}.list.element" if name in vectors else name: "zstd" if name in texts else "none" for name in names
    }
    return {"compression": compression, "use_dictionary": False, "write_page_checksum": True}
