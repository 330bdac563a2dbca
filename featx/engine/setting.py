# The settings of a call: batches and threads, the recipe that follows from them, and the plan.
"""How a call will run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx.engine.resources import Workers, spread
from featx.errors import WeightsError
from featx.requests import Job
from featx.runs import manifest
from featx.runs.basis import Basis, network_of, read, shown, stored
from featx.runs.planning import Plan, plan_work
from featx.runs.recipe import differences, options_of, recipe_of, require_same_recipe
from featx.runs.summary import require_summary
from featx.values import Item

if TYPE_CHECKING:
    import torch

    from featx.engine.boxes import Boxes
    from featx.engine.computing import Computer
    from featx.images.archives import Contents
    from featx.images.tiles import Tiling
    from featx.models.pyramid import Blueprint, Pyramid


@dataclass(frozen=True, slots=True)
class Loaded:
    """A pyramid's description, and the pyramid itself, once per device."""

    blueprint: Blueprint
    pyramids: list[Pyramid]
    tiling: Tiling | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """How a call will run: the plan, the workers, and the summary of the earlier call that it continues.

    The basis of components, and what smaller maps cost, may become known later; see `featx.engine.rehearsal`.
    """

    job: Job
    blueprint: Blueprint
    plan: Plan
    computers: list[Computer]
    workers: Workers
    recipe: dict[str, Any]
    earlier: dict[str, Any] | None
    done_again: int = 0
    archives: Sequence[Contents] = ()
    basis: Basis | None = None
    cost: dict[str, Any] | None = None
    tiling: Tiling | None = None


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
    pyramids, digest, tiling = loaded.pyramids, boxes.digest if boxes else None, loaded.tiling
    before = taken_over(job, earlier, pyramids[0].device)
    basis = basis_of(job, pyramids[0], output, earlier)
    computers, workers = spread(pyramids, job, len(items), before, on_note, boxes, basis)
    of_basis = basis.sha256 if basis else None
    recipe = recipe_of(pyramids[0], job, workers.batch_size, workers.threads, digest, of_basis, tiling)
    require_same_recipe(output, earlier, recipe, pyramids[0].architecture)
    if job.like:
        require_alike(job, recipe, pyramids[0].architecture, on_note)
    setting = Setting(job, loaded.blueprint, plan, computers, workers, recipe, earlier, basis=basis, tiling=tiling)
    if not may_do_again(job, earlier, plan):
        return setting
    basis = basis_of(job, pyramids[0], output, None)
    computers, suitable = spread(pyramids, job, len(plan.to_do), {}, on_note, boxes, basis)
    if suitable.batch_size <= workers.batch_size and suitable.threads >= workers.threads:
        return setting
    job = replace(job, overwrite=True)
    done_again = plan.kept_done + plan.again
    plan = plan_work(output, plan.renamed(items), job)
    of_basis = basis.sha256 if basis else None
    recipe = recipe_of(pyramids[0], job, suitable.batch_size, suitable.threads, digest, of_basis, tiling)
    made = (job, loaded.blueprint, plan, computers, suitable, recipe, None, done_again)
    return Setting(*made, basis=basis, tiling=tiling)


def basis_of(job: Job, pyramid: Pyramid, output: Path, earlier: dict[str, Any] | None) -> Basis | None:
    """Return the components that a call projects on: those given, or those of the run that it continues.

    None if they are still to be fitted, or none are wanted.

    Raises
    ------
    FeatxError
        If they cannot be read, do not fit the network, or those of the run are no longer what they were.
    """
    if job.components is None:
        return None
    continues = earlier is not None and earlier["recipe"]["components"] is not None
    found = stored(output, earlier["recipe"]["basis"]) if earlier and continues else None
    if job.basis is not None:
        found = read(job.basis)
        kept = {field.key for field in pyramid.fields}
        chosen = [level for level in pyramid.maps if level.key in kept]
        found.require(chosen, job.components, network_of(pyramid, job), shown(job.basis))
    return found


def continued(job: Job, output: Path, before: dict[str, Any] | None, *, binding: bool = False) -> dict[str, Any] | None:
    """Return the summary that a call continues; None where there is nothing to mix another recipe with.

    That is if no line was written, and other shards are not about to (`binding`), or all of them are about to be
    removed.
    """
    return before if binding or not (job.overwrite or not manifest.has_lines(output)) else None


def taken_over(job: Job, earlier: dict[str, Any] | None, device: torch.device) -> dict[str, Any]:
    """Return the recipe that settles batches and threads: of the run that a call continues, or that it is to be like.

    The batches of another kind of device are not taken over: they might not fit, and its numbers differ all the same.
    """
    if earlier or job.like is None:
        return earlier["recipe"] if earlier else {}
    recipe: dict[str, Any] = require_summary(job.like)["recipe"]
    return recipe if recipe["device"] == device.type else {}


def require_alike(job: Job, recipe: dict[str, Any], architecture: str, on_note: Callable[[str], None]) -> None:
    """Say what differs from the recipe of the run that a call is to be like; other weights must have been asked for.

    Raises
    ------
    WeightsError
        If the model's weights are not those of the run.
    """
    like = require_summary(job.like or "")
    changes = differences(like, recipe, architecture)
    asked, now = like.get("options", {}), options_of(job)
    if "weights" in changes and all(asked.get(name) == now[name] for name in ("model", "weights", "seed")):
        raise WeightsError(
            f"The weights of {job.model} are not those that {job.like} was made with ({changes['weights']})",
            "Restore them, or leave out --like",
        )
    if changes:
        on_note(f"Not as in {job.like}: {', '.join(changes.values())}")


def may_do_again(job: Job, earlier: dict[str, Any] | None, plan: Plan) -> bool:
    """Whether an earlier call's few images may be done again with settings that suit the many of this one."""
    if not earlier or job.shard or job.like:
        return False
    return plan.is_worth_doing_again() and unchosen(job, earlier) == unchosen(job, None)


def unchosen(job: Job, earlier: dict[str, Any] | None) -> set[str]:
    """Name the settings that change numbers and were chosen by featx, in this call and those before it."""
    asked = {"batch_size": job.batch_size, "threads": job.workers}
    now = {name for name, value in asked.items() if value is None and job.like is None}
    return now & set(earlier.get("unchosen", ())) if earlier else now
