# Complete runs: recognised, when run again, without loading torch or the model.
"""Whether there is nothing to do.

A complete run needs nothing as long as the same options are given, its libraries have the same versions, and the files
of its model are unchanged. In any doubt, the recipes are compared in full.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

from featx.requests import Job
from featx.runs import basis, parts
from featx.runs.layout import UNFINISHED
from featx.runs.planning import Plan
from featx.runs.recipe import file_facts, options_of
from featx.runs.summary import SHARDS
from featx.version import library_versions

# Where a hub's cache keeps a file of a repository: under its revision, which a name such as ``main`` refers to.
CACHED = re.compile(r"(?P<repository>.*/models--[^/]+)/snapshots/(?P<revision>[^/]+)/.*")


def is_settled(job: Job, output: Path, earlier: dict[str, Any], plan: Plan, boxes: str | None = None) -> bool:
    """Whether a run is complete for this job, and was made with exactly its options.

    Parameters
    ----------
    job : Job
        The options of this call.
    output : Path
        The run's folder.
    earlier : dict
        Its summary.
    plan : Plan
        The images, compared with the manifest.
    boxes : str or None
        Digest of the boxes.
    """
    return (
        not (plan.to_do or job.overwrite)
        and _is_done(job, earlier)
        and not (parts.home_of(output, job.shard) / UNFINISHED).exists()
        and earlier.get("options") == options_of(job)
        and earlier["recipe"]["boxes"] == boxes
        and _same_basis(job, output, earlier["recipe"]["basis"])
        and _same_machine(job, earlier)
        and _same_versions(job, earlier)
        and all(_is_unchanged(then, job.model) for then in earlier["files"])
    )


def _is_done(job: Job, earlier: dict[str, Any]) -> bool:
    """Whether the last call ended with everything done: the last one for the same shard, where there are shards."""
    if job.shard is None or SHARDS not in earlier:
        return bool(earlier["state"] == "done")
    each = earlier[SHARDS]["each"].get(str(job.shard.number), {})
    return bool(earlier[SHARDS]["of"] == job.shard.count and each.get("state") == "done")


def _same_basis(job: Job, output: Path, sha256: str | None) -> bool:
    """Whether the components of the run are as they were, and those given, if any, are the same."""
    if sha256 is None:
        return job.basis is None
    return not basis.fault_of(output, sha256) and (job.basis is None or basis.read(job.basis).sha256 == sha256)


def _same_machine(job: Job, earlier: dict[str, Any]) -> bool:
    """Whether batch size and device are those of the run or not given, and no threads are given."""
    recipe = earlier["recipe"]
    device = "cuda" if job.device == "all" else job.device.partition(":")[0]
    return (
        job.batch_size in (None, recipe["batch_size"]) and job.workers is None and device in ("auto", recipe["device"])
    )


def _same_versions(job: Job, earlier: dict[str, Any]) -> bool:
    try:
        return library_versions(earlier["source"], job.backend) == dict(earlier["recipe"]["versions"])
    except metadata.PackageNotFoundError:
        return False


def _is_unchanged(then: dict[str, Any], model: str) -> bool:
    """Whether a file of the model is the same, and its name in a hub's cache still refers to it."""
    if file_facts(then["path"]) != then:
        return False
    cached = CACHED.fullmatch(then["path"])
    if cached is None:
        return True
    name = model.rpartition("@")[2] if "@" in model else "main"
    try:
        return (Path(cached["repository"]) / "refs" / name).read_text().strip() == cached["revision"]
    except OSError:  # a revision given by its hash has no name
        return name == cached["revision"]
