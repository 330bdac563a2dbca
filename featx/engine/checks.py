# Checks of what was asked for: options that contradict each other, before anything heavy is loaded.
"""Refusing early."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featx.errors import UsageError
from featx.options import Job
from featx.runs import formats

if TYPE_CHECKING:
    pass

DTYPES = ("float32", "float16")


def require_sound(job: Job) -> None:
    """Refuse what needs no torch to be refused."""
    if job.batch_size is not None and job.batch_size < 1:
        raise UsageError(f"A batch of {job.batch_size} images is no batch", "Use a --batch-size of 1 or more")
    if job.workers is not None and job.workers < 1:
        raise UsageError(f"{job.workers} workers get nothing done", "Use --workers 1 or more")
    formats.require(job.format)
    _require_vectors(job)
    if job.dtype not in DTYPES:
        raise UsageError(f"Maps cannot be written as {job.dtype!r}", f"Use --dtype {' or '.join(DTYPES)}")


def _require_vectors(job: Job) -> None:
    """Refuse options that cannot go with the format, or with having nothing but vectors."""
    request = job.request
    if formats.vectors_only(job.format):
        others = {
            "maps": request.maps,
            "final": request.final,
            "prefix-tokens": request.prefix_tokens,
            "norm": request.norm,
        }
        asked = [name for name, value in others.items() if value]
        if asked:
            raise UsageError(f"--format {job.format} keeps embeddings alone", f"Leave --{asked[0]} out, or use npz")
        if not request.embedding:
            raise UsageError(f"--format {job.format} keeps embeddings, and none were asked for", "Add --embedding")
    if job.dtype != "float32" and not (request.maps or request.final):
        raise UsageError("--dtype is about maps, and none are written", "Leave it out; embeddings are float32")
