# Restored arrays: maps as float32, whatever they are stored as.
"""What reading a run gives where its raw arrays are not asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from msgspec.structs import replace

from featx.dtypes import DTYPES, SCALE
from featx.runs.formats import Array
from featx.values import Field


class Restored(Mapping[str, Array]):
    """The arrays of an image, those of maps and beside them as float32; each is made when it is asked for.

    What is stored as float32 is given as it is, and may be memory-mapped.
    """

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = arrays
        self._names = [name for name in arrays if not _is_scale(name, arrays)]

    def __getitem__(self, name: str) -> Array:
        """Return an array, its values multiplied by their scales where they have some."""
        if name not in self._names:
            raise KeyError(name)
        values = self._arrays[name]
        if values.dtype == np.int8:
            return np.multiply(values, self._arrays[f"{name}{SCALE}"][:, None, None], dtype=np.float32)
        return values.astype(np.float32, copy=False) if values.dtype.name in DTYPES else values

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def restored_fields(fields: Sequence[Field]) -> tuple[Field, ...]:
    """Return the fields of restored arrays."""
    names = {field.key for field in fields}
    return tuple(
        replace(field, dtype="float32") if field.dtype in DTYPES else field
        for field in fields
        if not _is_scale(field.key, names)
    )


def needed(name: str, fields: Sequence[Field]) -> list[str]:
    """Return the names of the stored arrays that an array is made of."""
    return [name, *(field.key for field in fields if field.key == f"{name}{SCALE}")]


def _is_scale(name: str, names: Mapping[str, object] | set[str]) -> bool:
    return name.endswith(SCALE) and name.removesuffix(SCALE) in names
