# FeatureDataset: a run as torch's data loaders want it.
"""A run's features as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from featx.errors import UsageError

if TYPE_CHECKING:
    from featx.reading import Run


class FeatureDataset(Dataset[dict[str, Any]]):
    """The images of a run, by number: dicts of ``key`` and one (C, H, W) tensor for each ``level_N``.

    Raises
    ------
    UsageError
        If the run lacks one of the levels.
    """

    def __init__(self, run: Run, levels: Sequence[int] | None = None) -> None:
        self._run = run
        self._keys = list(run)
        available = {level.index: level.key for level in run.levels}
        chosen = available.keys() if levels is None else levels
        absent = [index for index in chosen if index not in available]
        if absent:
            raise UsageError(f"The run has no level {absent[0]}", f"It has {', '.join(map(str, available))}")
        self._names = [available[index] for index in chosen]

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return image `number`; the tensors are copies, free to be changed."""
        key = self._keys[number]
        arrays = self._run[key]
        return {"key": key, **{name: torch.from_numpy(np.array(arrays[name])) for name in self._names}}
