# The settings of a call: batches and threads, the recipe that follows from them, and the plan.
"""How a call will run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx.engine.resources import Workers, spread
from featx.requests import Job
from featx.runs import manifest
from featx.runs.planning import Plan, plan_work
from featx.runs.recipe import recipe_of, require_same_recipe
from featx.values import Item

if TYPE_CHECKING:
    from featx.engine.boxes import Boxes
    from featx.engine.computing import Computer
    from featx.images.archives import Contents
    from featx.models.pyramid import Blueprint, Pyramid


@dataclass(frozen=True, slots=True)
class Loaded:
    """A pyramid's description, and the pyramid itself, once per device."""

    blueprint: Blueprint
    pyramids: list[Pyramid]


@dataclass(frozen=True, slots=True)
class Setting:
    """How a call will run: the plan, the workers, and the summary of the earlier call that it continues."""

    job: Job
    blueprint: Blueprint
    plan: Plan
    computers: list[Computer]
    workers: Workers
    recipe: dict[str, Any]
    earlier: dict[str, Any] | None
    done_again: int = 0
    archives: Sequence[Contents] = ()


def set_up(
    loaded: Loaded,
    job: Job,
    items: list[Item],
    output: Path,
    earlier: dict[str, Any] | None,
    plan: Plan,
    on_note: Callable[[str], None],
    boxes: Boxes | None = None,
) -> Setting:
    """Choose batches and threads, and make sure that the recipe matches the folder's.

    Settings that were not given were chosen for an earlier call's images. If those were few, and now there are many,
    the few are computed again with settings that suit the many: all features of a folder come from one recipe.
    """
    pyramids, digest = loaded.pyramids, boxes.digest if boxes else None
    computers, workers = spread(pyramids, job, len(items), (earlier or {}).get("recipe", {}), on_note, boxes)
    recipe = recipe_of(pyramids[0], job, workers.batch_size, workers.threads, digest)
    require_same_recipe(output, earlier, recipe, pyramids[0].architecture)
    setting = Setting(job, loaded.blueprint, plan, computers, workers, recipe, earlier)
    if not may_do_again(job, earlier, plan):
        return setting
    computers, suitable = spread(pyramids, job, len(plan.to_do), {}, on_note, boxes)
    if suitable.batch_size <= workers.batch_size and suitable.threads >= workers.threads:
        return setting
    job = replace(job, overwrite=True)
    done_again = plan.kept_done + plan.again
    plan = plan_work(output, plan.renamed(items), job)
    recipe = recipe_of(pyramids[0], job, suitable.batch_size, suitable.threads, digest)
    return Setting(job, loaded.blueprint, plan, computers, suitable, recipe, None, done_again)


def continued(job: Job, output: Path, before: dict[str, Any] | None, *, binding: bool = False) -> dict[str, Any] | None:
    """Return the summary that a call continues; None where there is nothing to mix another recipe with.

    That is if no line was written, and other shards are not about to (`binding`), or all of them are about to be
    removed.
    """
    return before if binding or not (job.overwrite or not manifest.has_lines(output)) else None


def may_do_again(job: Job, earlier: dict[str, Any] | None, plan: Plan) -> bool:
    """Whether an earlier call's few images may be done again with settings that suit the many of this one."""
    if not earlier or job.shard:
        return False
    return plan.is_worth_doing_again() and unchosen(job, earlier) == unchosen(job, None)


def unchosen(job: Job, earlier: dict[str, Any] | None) -> set[str]:
    """Name the settings that change numbers and were chosen by featx, in this call and those before it."""
    asked = {"batch_size": job.batch_size, "threads": job.workers}
    now = {name for name, value in asked.items() if value is None}
    return now & set(earlier.get("unchosen", ())) if earlier else now
