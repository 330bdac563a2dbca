# Reductions: steps applied to a network's arrays before they are written; none depends on a model library.
"""The steps between the network and the writer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from msgspec.structs import replace
from torch import Tensor

from featx.requests import Job
from featx.values import Field


class Reduction(Protocol):
    """A step from a batch's arrays to those that are written, or to the next step."""

    def fields(self, fields: Sequence[Field]) -> list[Field]:
        """Return the output fields for some input fields."""

    def __call__(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Reduce a batch: (B, ...) for each field, on the device that computed it."""


@dataclass(frozen=True, slots=True)
class StoredType:
    """Cast maps to the stored type; vectors keep full precision.

    Attributes
    ----------
    dtype : str
        ``float32`` or ``float16``.
    """

    dtype: str

    def fields(self, fields: Sequence[Field]) -> list[Field]:
        """Return the same arrays, with their types."""
        return [replace(field, dtype="float32" if field.is_vector else self.dtype) for field in fields]

    def __call__(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Cast where that halves the copy; on a CPU, the copy into the output's layout casts."""
        types = (torch.float32 if value.ndim == 2 else getattr(torch, self.dtype) for value in values)  # (B, D)
        return [value.to(kind) if value.is_cuda else value for value, kind in zip(values, types, strict=True)]


def reductions_of(job: Job) -> list[Reduction]:
    """Return the steps that a job requires, in order."""
    return [StoredType(job.dtype)]
