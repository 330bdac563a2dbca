# Checks of a job: what its format can hold, before anything heavy is loaded.
"""Checks that `featx.options` cannot make, since each format says what it can hold."""

from __future__ import annotations

from dataclasses import replace

from featx.errors import UsageError
from featx.requests import Job
from featx.runs import formats


def completed(job: Job) -> Job:
    """Decide whether maps are kept, if not specified, and refuse what the format cannot hold.

    Raises
    ------
    UsageError
        If the format is unknown, or holds only vectors and something else was requested.
    """
    formats.require(job.format)
    if not formats.vectors_only(job.format):
        return replace(job, maps=job.maps is not False)
    others = {"maps": job.maps, "final": job.final, "prefix-tokens": job.prefix_tokens, "norm": job.norm}
    asked = [name for name, value in others.items() if value]
    if asked:
        raise UsageError(f"--format {job.format} holds only embeddings", f"Leave out --{asked[0]}, or use npz")
    if not job.embedding:
        raise UsageError(f"--format {job.format} holds only embeddings, and none were asked for", "Add --embedding")
    return replace(job, maps=False)
