# FeatureDataset: a run as torch's data loaders want it.
"""A run's features as tensors, and the ids and labels of its boxes as lists of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from featx.errors import UsageError
from featx.runs.formats import Array
from featx.runs.tensors import tensor_of


class FeatureDataset(Dataset[dict[str, Any]]):
    """The images of a run, by number: dicts of ``key``, a tensor for each array of numbers, a list for each of text.

    Parameters
    ----------
    run : mapping
        Image key to arrays; see `featx.runs.reading.Run`.
    available : sequence of str
        Names of the arrays that every image has.
    levels : sequence of int or str, or None
        Those to read: levels by their indices, or arrays by their names; None reads all.

    Raises
    ------
    UsageError
        If the run lacks one of those asked for.
    """

    def __init__(
        self,
        run: Mapping[str, Mapping[str, Array]],
        available: Sequence[str],
        levels: Sequence[int | str] | None = None,
    ) -> None:
        self._run = run
        self._keys = list(run)
        chosen = available if levels is None else levels
        self._names = [f"level_{name}" if isinstance(name, int) else name for name in chosen]
        absent = [name for name in self._names if name not in available]
        if absent:
            raise UsageError(f"The run has no {absent[0]}", f"It has {', '.join(available)}")

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return image `number`; the tensors and lists are copies, free to be changed."""
        key = self._keys[number]
        arrays = self._run[key]
        return {"key": key, **{name: _copied(arrays[name]) for name in self._names}}


def _copied(values: Array) -> Tensor | list[str]:
    """Copy numbers to a tensor; torch has none of text, such as the ids and labels of boxes."""
    return values.tolist() if values.dtype.kind == "U" else tensor_of(values)
