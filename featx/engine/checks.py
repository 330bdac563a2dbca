# Checks of a job: what its format can hold, and who can write it where, before anything heavy is loaded.
"""Checks that `featx.options` cannot make, since each format says what it can hold."""

from __future__ import annotations

from dataclasses import replace

from featx.errors import UsageError
from featx.requests import Job
from featx.runs import formats


def completed(job: Job) -> Job:
    """Decide whether maps are kept, and the size of boxes, if not specified; refuse what the format cannot hold.

    Raises
    ------
    UsageError
        If the format is unknown, cannot hold what was requested, or cannot be written there or by that engine.
    """
    formats.require(job.format)
    formats.require_type(job.format, job.dtype)
    if job.engine == "ray" and formats.shares_files(job.format):
        raise UsageError(
            f"--engine ray writes files where its workers are, and in --format {job.format} images share files",
            "Use --format npz or safetensors; featx similar reads embeddings from them as well",
        )
    if job.shard_mb and not formats.FORMATS[job.format].sized:
        raise UsageError(
            f"--shard-mb is the size of tar files, and --format {job.format} has none",
            "Leave out --shard-mb, or use --format webdataset",
        )
    if isinstance(job.output, str):
        _require_uploadable(job)
    if job.shard:
        _require_divisible(job)
    if formats.FORMATS[job.format].uniform and (job.boxes or job.fit == "native"):
        raise UsageError(
            f"--format {job.format} stores arrays of one shape for all images, which "
            f"{'--boxes' if job.boxes else '--fit native'} does not give",
            formats.OTHERWISE,
        )
    if job.boxes:
        job = replace(job, box_size=job.box_size or (1, 1))
    if not formats.vectors_only(job.format):
        return replace(job, maps=job.maps is not False)
    holds = "holds only embeddings"
    if job.boxes and formats.FORMATS[job.format].boxes:
        holds = "holds only embeddings, or only vectors of boxes"
        _require_vectors(job)
    elif job.boxes:
        raise UsageError(f"--format {job.format} {holds}, not features of boxes", "Use --format npz or parquet")
    levels = {"maps": job.maps, "prefix-tokens": job.prefix_tokens, "attention": job.attention}
    others = {**levels, "final": job.final, "module": job.modules}
    if not job.boxes:
        others["norm"] = job.norm
    asked = [name for name, value in others.items() if value]
    if asked:
        raise UsageError(f"--format {job.format} {holds}", f"Leave out --{asked[0]}, or use npz")
    if not (job.embedding or job.boxes):
        raise UsageError(f"--format {job.format} {holds}, and none were asked for", "Add --embedding")
    return replace(job, maps=False)


def _require_uploadable(job: Job) -> None:
    """Refuse what cannot be done behind a URL."""
    if formats.FORMATS[job.format].grows:
        raise UsageError(
            f"--format {job.format} appends to its files, and objects behind a URL cannot be appended to",
            "Use --format npz, safetensors or parquet, or write to a folder and copy it",
        )
    if job.engine == "ray":
        raise UsageError("--engine ray writes to a folder that all machines see, not to a URL", "Give such a folder")
    if job.shard:
        raise UsageError(
            "--shard divides a folder, and a URL belongs to one run at a time",
            "Give every shard a URL of its own, or a folder that all of them see",
        )


def _require_divisible(job: Job) -> None:
    """Refuse what a shard cannot do while others may be at work."""
    if job.overwrite:
        raise UsageError(
            "--overwrite removes what all shards made, and --shard is about one of them",
            "Choose another folder with --output, or remove this one",
        )
    if not formats.takes_shards(job.format):
        raise UsageError(
            f"--format {job.format} keeps one file for all images, which shards cannot write at once",
            "Use --format npz or parquet",
        )


def _require_vectors(job: Job) -> None:
    """Refuse features of boxes that are not one float32 vector a level, and nothing else."""
    if job.box_size != (1, 1):
        raise UsageError(
            f"--format {job.format} holds one vector per box and level, not several cells",
            "Leave out --box-size, or use --format npz",
        )
    if job.embedding:
        raise UsageError(
            f"--format {job.format} holds embeddings of images or vectors of boxes, not both",
            "Leave out --embedding, or use --format npz",
        )
    if job.dtype != "float32":
        raise UsageError(f"--format {job.format} holds float32", "Leave out --dtype, or use --format npz")
