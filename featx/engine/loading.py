# Loading: a run is forecast on shapes alone, and then its model is loaded, once per device.
"""From a job to pyramids that are ready to compute; importing this takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featx.engine.boxes import Boxes
from featx.engine.events import Foreseen, Listener, Phase
from featx.engine.forecast import Forecast, foresee, tight
from featx.engine.hardware import slow_precision
from featx.engine.measures import stored_fields
from featx.engine.remedies import require_room
from featx.engine.resources import workers_on_cpu
from featx.engine.setting import Loaded, may_do_again, taken_over
from featx.engine.tiling import said_of, tiling_of
from featx.images.cells import spacing_of
from featx.models.devices import choose_devices
from featx.models.pyramid import build, draw_up
from featx.requests import Job
from featx.runs import formats
from featx.runs.planning import Plan
from featx.runs.recipe import options_of
from featx.values import Item, Note


def load(
    job: Job,
    items: list[Item],
    output: Path,
    plan: Plan,
    earlier: dict[str, Any] | None,
    boxes: Boxes | None,
    listener: Listener,
) -> tuple[Loaded | None, Forecast]:
    """Forecast the run; then load the model once per device, unless this is a dry run.

    Raises
    ------
    FeatxError
        If the run cannot fit, or the model cannot be loaded.
    """
    devices = choose_devices(job.device)  # first, since a wrong one should not cost a download
    listener(Phase(f"looking into {job.model}"))
    blueprint = draw_up(job.request)
    for level in blueprint.description.levels if boxes else ():
        spacing_of(level)  # which the cells of a box need
    tiling = tiling_of(blueprint, job)
    formats.require(job.format, stored_fields(blueprint, job, boxes=boxes))
    again = may_do_again(job, earlier, plan)
    to_compute = items if again else plan.to_do
    recipe = taken_over(job, None if again else earlier, devices[0])
    here = devices[0].type == "cpu" and job.engine == "local"  # the memory of other machines is not known
    workers = workers_on_cpu(job, len(items), recipe) if here else None
    forecast = foresee(blueprint, job, to_compute, output, workers, boxes, tiling)
    listener(Foreseen(forecast))
    if to_compute and not job.dry_run:
        require_room(forecast, blueprint, job, output, workers, tiling)
    said = (*blueprint.description.notes, *(said_of(tiling, blueprint, job) if tiling else ()))
    for text in (*said, *tight(forecast), *slow_precision(job, devices[0])):
        listener(Note(text))
    if job.dry_run:
        if earlier and (other := _other_options(job, earlier, boxes)):
            listener(Note(f"{output} holds features made with other options ({other}); the run may be refused"))
        return None, forecast
    listener(Phase("loading the weights" if job.weights != "random" else "making random weights"))
    return Loaded(blueprint, [build(blueprint, device) for device in devices], tiling), forecast


def _other_options(job: Job, earlier: dict[str, Any], boxes: Boxes | None) -> str:
    """Name the options that have other values than in earlier calls; these may come to the same recipe all the same."""
    then, now = earlier.get("options", {}), options_of(job)
    names = [name for name in now if name in then and then[name] != now[name]]
    if earlier["recipe"]["boxes"] != (boxes.digest if boxes else None):
        names.append("boxes")
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)
