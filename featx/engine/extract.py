# extract: plans the work, has an engine do it, and records the outcome of each image.
"""``featx extract`` as a function."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx.declaring import keywords
from featx.engine.checks import completed
from featx.engine.events import Listener, Phase, Planned, naming
from featx.engine.execution import Callers, Execution, Place, engine_of, recording
from featx.engine.notes import of_plan, remarks, surprises
from featx.engine.setting import Setting, continued, set_up, unchosen
from featx.engine.settled import is_settled
from featx.engine.stopping import Stop
from featx.engine.tiling import facts_of as facts_of_tiles
from featx.engine.tiling import known_deviation, measured
from featx.images import archives, lists, sources
from featx.naming import folder_name
from featx.options import GROUPS
from featx.requests import Job
from featx.runs import formats, layout, lock, remote, shards
from featx.runs.garbage import ANY_VECTOR, collect_garbage
from featx.runs.planning import Plan, plan_work
from featx.runs.recipe import facts_of
from featx.runs.recipe_files import completed_by_recipe
from featx.runs.recorder import Recorder
from featx.runs.remembered import Remembered, merged
from featx.runs.summary import read_summary
from featx.runs.suspects import marks_of, pending_suspects
from featx.text import images
from featx.values import Item, Note, Outcome

if TYPE_CHECKING:
    from featx.engine.boxes import Boxes
    from featx.engine.forecast import Forecast
    from featx.images.annotations import Fault


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a call of `extract`.

    Attributes
    ----------
    summary : dict
        The run's ``summary.json``.
    output : Path or str
        The run's folder, or its URL; `featx.open_run` reads it.
    tried, computed : int
        Images that this call worked on, and how many of them it made features of.
    failures : list of Outcome
        Images of this call's inputs that have no features, now or from an earlier call: each with stage and error.
    forecast : featx.engine.forecast.Forecast or None
        What was expected of this call; None where it had nothing to do.
    box_faults : list of featx.images.annotations.Fault
        Boxes of ``--boxes`` that cannot be used: each with its photo and the reason.
    counted : str
        What their lines count: ``line`` of CSV, or ``annotation`` of COCO; empty without ``--boxes``.
    """

    summary: dict[str, Any]
    output: Path | str
    tried: int
    computed: int
    failures: list[Outcome]
    forecast: Forecast | None = None
    box_faults: list[Fault] = field(default_factory=list)
    counted: str = ""


@keywords(*GROUPS, without=("model", "output"))
def extract(
    inputs: str | PathLike[str] | Iterable[str | PathLike[str]],
    model: str | None = None,
    output: str | PathLike[str] | None = None,
    *,
    from_file: str | PathLike[str] | None = None,
    listener: Listener | None = None,
    **options: Any,
) -> Report:
    """Write the features of every image to a folder; calling it again resumes where it stopped.

    Parameters
    ----------
    inputs : str, path or iterable of them
        Files, archives, tables (``photos.parquet::image``), folders (walked) and glob patterns, or URLs of these.
    model : str or None
        timm's: ``arch``, ``arch.tag``, ``hf-hub:org/name`` or ``local-dir:path``; or ultralytics': ``yolov8n``. None
        takes that of `like` or `recipe`.
    output : path or None
        The run's folder, or a URL such as ``s3://bucket/run`` as text; None takes ``features/<model>``.
    from_file : path or None
        A list of images, one path or URL per line.
    listener : callable or None
        Called with each event as it comes: `featx.values.Note`, `featx.values.Outcome`, and those of
        `featx.engine.events`.
    **options
        Every option of ``featx extract``, by the same name.

    Returns
    -------
    Report
        Summary, folder and failures. A broken image is a failure in it, not an exception.

    Raises
    ------
    FeatxError
        If the run cannot begin or go on; see `featx.errors`.
    """
    one = isinstance(inputs, str | PathLike)
    named = {name: value for name, value in (("model", model), ("output", output)) if value is not None}
    job = Job(
        inputs=(str(inputs),) if one else tuple(str(value) for value in inputs),  # type: ignore[union-attr]
        listed=lists.read_file(from_file) if from_file is not None else (),
        **completed_by_recipe({**options, **named}),
    )
    return run(job, listener or (lambda _: None))


def run(job: Job, listener: Listener, stop: Stop | None = None, captured: Callable[[], int] = lambda: 0) -> Report:
    """Do a job; see `extract`.

    Parameters
    ----------
    job : Job
        The job to do.
    listener : callable
        Called with each event.
    stop : Stop or None
        Checked while images are processed.
    captured : callable
        How many bytes libraries have written to standard error; see `featx.engine.isolation.Reader`.
    """
    job = completed(job)
    if not isinstance(job.output, str):
        return _run(job, listener, stop or Stop(), captured)
    with remote.at(job.output, changing=not job.dry_run) as folder:
        staged = replace(job, output=folder)
        report = _run(staged, naming(listener, folder, job.output), stop or Stop(), captured)
    return replace(report, output=job.output)


def _run(job: Job, listener: Listener, stop: Stop, captured: Callable[[], int]) -> Report:
    """Do a job whose output is a folder, or stands for a run behind a URL."""
    found, output = _find(job, listener)
    boxes, items = _with_boxes(job, found.items, listener)
    with ExitStack() as stack:
        before = read_summary(output)
        held = stack.enter_context(_held(job, output)) if before and not job.dry_run else None
        before = read_summary(output) if held else before  # another run may have ended while this one waited
        plan = _planned(output, items, job, boxes)
        if before and is_settled(job, output, before, plan, boxes.digest if boxes else None):
            return _nothing_to_do(before, output, plan, boxes, listener)
        earlier = continued(job, output, before, binding=bool(held and held.binding))
        listener(Phase("loading torch and timm"))
        from featx.engine.loading import load  # which takes seconds, and a wrong path should not cost them

        loaded, forecast = load(job, items, output, plan, earlier, boxes, listener)
        if loaded is None:
            return Report(before or {}, output, 0, 0, plan.failures, forecast, *_faults(boxes, output))
        if held is None:
            held = stack.enter_context(_held(job, output))
            if before := read_summary(output):  # written by another run meanwhile
                plan, earlier = (
                    _planned(output, items, job, boxes),
                    continued(job, output, before, binding=held.binding),
                )
        notes: deque[str] = deque()
        setting = set_up(loaded, job, items, output, earlier, plan, notes.append, boxes)
        setting = replace(setting, archives=found.archives)
        callers = Callers(listener, stop, captured)
        return _work(held, output, setting, items, read_summary(output), notes, forecast, boxes, callers)


def _work(
    held: lock.LockedFolder,
    output: Path,
    setting: Setting,
    items: list[Item],
    before: dict[str, Any] | None,
    notes: deque[str],
    forecast: Forecast,
    boxes: Boxes | None,
    callers: Callers,
) -> Report:
    """Do the work of a plan."""
    from featx.engine.rehearsal import rehearsed, require_enough  # with torch

    plan, listener = setting.plan, callers.listener
    require_enough(setting, items)
    with closing(engine_of(setting, boxes, callers, notes)) as engine:
        suspects = pending_suspects(held.unfinished, output, plan)
        suspected = set(suspects.keys() & marks_of(plan.to_do)) if suspects else set()
        writer = _begin(held, output, setting, before)
        place = Place(output, held.unfinished, writer, suspected, frozenset(suspected | marks_of(plan.retried)))
        setting = engine.setting = rehearsed(setting, items, place, callers, notes)
        if setting.basis:
            held.keep(setting.basis)
        recorder = _recorder(held, output, setting, listener)
        for text in (*held.notes, *surprises(setting, suspected)):
            listener(Note(text))
        execution = Execution(engine, place, recorder, suspects, notes, callers)
        failures = list(plan.failures)
        with recording(recorder, callers.stop):
            failures += execution.run(plan.to_do)
            if plan.again or len(failures) > len(plan.failures):
                collect_garbage(writer, output, setting.job.format)
        recorder.facts["largest_pass"] = engine.largest_pass
        if setting.tiling:
            facts = recorder.facts["tiling"] = facts_of_tiles(setting.tiling, engine.deviation, setting.job.precision)
            for text in measured(facts):
                listener(Note(text))
    recorder.save("done")
    tried = len(plan.to_do)
    done = tried - (len(failures) - len(plan.failures))
    return Report(recorder.summary, output, tried, done, failures, forecast, *_faults(boxes, output))


def _nothing_to_do(
    summary: dict[str, Any], output: Path, plan: Plan, boxes: Boxes | None, listener: Listener
) -> Report:
    """Report a run that is complete already."""
    listener(Planned(summary, output, 0, plan.done, tuple(plan.failures)))
    for text in of_plan(plan):
        listener(Note(text))
    return Report(summary, output, 0, 0, plan.failures, None, *_faults(boxes, output))


def _with_boxes(job: Job, items: list[Item], listener: Listener) -> tuple[Boxes | None, list[Item]]:
    """Read the boxes, and leave out images without any."""
    if job.boxes is None:
        return None, items
    from featx.engine.boxes import read

    boxes, kept = read(job.boxes, job.box_size or (1, 1), items)
    if without := len(items) - len(kept):
        listener(Note(f"{images(without)} without boxes in {job.boxes}, left out"))
    return boxes, kept


def _faults(boxes: Boxes | None, output: Path) -> tuple[list[Fault], str]:
    """Return the boxes that cannot be used, and what their numbers count."""
    return (boxes.faults(output), boxes.found.counted) if boxes else ([], "")


def _held(job: Job, output: Path) -> AbstractContextManager[lock.LockedFolder]:
    """Lock the folder, or a shard's part of it."""
    return shards.exclusive(output, job.shard) if job.shard else remote.exclusive(output)


def _planned(output: Path, items: list[Item], job: Job, boxes: Boxes | None) -> Plan:
    """Compare the images with the manifest; the boxes follow those that have another key there."""
    return plan_work(output, items, job, boxes.stale if boxes else None)


def _find(job: Job, listener: Listener) -> tuple[sources.Found, Path]:
    """Find the images, and the folder, which must be usable before anything slow begins."""
    output = Path(job.output) if job.output else Path("features") / folder_name(job.model)
    remembered = Remembered(output)

    def listing(path: str) -> archives.Listing:
        if known := remembered(path):
            return known
        listener(Phase(f"reading {path}"))
        return archives.listing(path)

    found = sources.find(job.inputs, job.listed, listing)
    layout.tell_apart(found.items, found.crowded, formats.FORMATS[job.format].suffix)
    lock.require_usable(output)
    for text in remarks(found, job):
        listener(Note(text))
    return found, output


def _begin(held: lock.LockedFolder, output: Path, setting: Setting, earlier: dict[str, Any] | None) -> formats.Writer:
    """Clean up what earlier calls left unfinished, and make the writer."""
    if earlier:  # whose outputs may have to be cleared away
        formats.require(earlier["recipe"]["format"])
    held.begin(from_scratch=setting.job.overwrite)
    shard = setting.job.shard
    writer = formats.writer(
        setting.job.format, output, held.unfinished, setting.computers[0].fields, shard, setting.job.shard_mb
    )
    if earlier:
        name = earlier["recipe"]["format"]
        same = name == setting.job.format
        collect_garbage(writer if same else formats.writer(name, output, held.unfinished, ANY_VECTOR), output, name)
    return writer


def _recorder(held: lock.LockedFolder, output: Path, setting: Setting, listener: Listener) -> Recorder:
    """Start recording the run, and tell the listener what is planned."""
    plan = setting.plan
    facts = facts_of(setting.computers[0], setting.recipe, setting.job)
    if setting.cost:
        facts["cost"] = setting.cost
    if seen := merged(setting.earlier, setting.archives):
        facts["archives"] = seen
    if setting.tiling:
        facts["tiling"] = facts_of_tiles(setting.tiling, known_deviation(setting.earlier), setting.job.precision)
    facts["unchosen"] = sorted(unchosen(setting.job, setting.earlier))
    counts = (plan.kept_done, plan.kept_failed, plan.kept_bytes, len(plan.to_do))
    recorder = Recorder(output, held, facts, *counts, setting.earlier, plan.elsewhere, plan.numbers)
    recorder.save("running")
    listener(Planned(recorder.summary, output, len(plan.to_do), plan.done, tuple(plan.failures)))
    return recorder
