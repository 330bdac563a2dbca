# Tensors and arrays: the same numbers, as torch and as numpy have them.
"""Between torch and numpy, which lacks bfloat16; its type is that of ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from featx.runs.formats import Array

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def array_of(values: Tensor | Array) -> Array:
    """Return a tensor on the host as an array, without copying; arrays are returned as they are."""
    if isinstance(values, Tensor) and values.dtype == torch.bfloat16:
        return values.view(torch.uint16).numpy().view(BFLOAT16)
    return np.asarray(values)


def tensor_of(values: Array) -> Tensor:
    """Copy an array to a tensor."""
    copied = np.array(values)  # torch takes no read-only arrays
    if copied.dtype == BFLOAT16:
        return torch.from_numpy(copied.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(copied)
