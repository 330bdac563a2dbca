# extract: plan what is to be done, have the pipeline do it, and fold the outcomes into the run's books.
"""``featx extract`` as a function."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx.declaring import keywords
from featx.engine.checks import completed
from featx.engine.crew import Crew, booked, work_off
from featx.engine.events import Listener, Planned
from featx.engine.notes import remarks, surprises
from featx.engine.resources import hand_over, machine
from featx.engine.setting import set_up, unchosen
from featx.engine.stopping import Stop
from featx.images import lists, sources
from featx.options import GROUPS, Job, folder_name
from featx.runs import formats, layout, lock, recorder
from featx.runs.clearing import ANY_VECTOR, clear_up
from featx.runs.recipe import facts_of
from featx.runs.summary import read_summary
from featx.runs.suspects import still_suspected
from featx.values import Note, Outcome

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class Report:
    """What a call of `extract` came to.

    Attributes
    ----------
    summary : dict
        The run's ``summary.json``.
    output : Path
        The run's folder; `featx.open_run` reads it.
    tried, computed : int
        Images that this call worked on, and those of them whose features it made.
    failures : list of Outcome
        Images of this call's inputs that have no features, now or from an earlier call: each with stage and error.
    """

    summary: dict[str, Any]
    output: Path
    tried: int
    computed: int
    failures: list[Outcome]


@keywords(*GROUPS, without=("model", "output"))
def extract(
    inputs: str | PathLike[str] | Iterable[str | PathLike[str]],
    model: str,
    output: str | PathLike[str] | None = None,
    *,
    from_file: str | PathLike[str] | None = None,
    listener: Listener | None = None,
    **options: Any,
) -> Report:
    """Write the features of every image to a folder; calling it again goes on where it stopped.

    Parameters
    ----------
    inputs : str, path or iterable of them
        Files, folders (walked) and glob patterns.
    model : str
        timm's: ``arch``, ``arch.tag``, ``hf-hub:org/name`` or ``local-dir:path``; or ultralytics': ``yolov8n``.
    output : path or None
        The run's folder; None takes ``features/<model>``.
    from_file : path or None
        A list of images, one path a line.
    listener : callable or None
        Called with `featx.values.Note`, `featx.engine.events.Planned` and `featx.values.Outcome` as they come.
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
    job = Job(
        inputs=(str(inputs),) if one else tuple(str(value) for value in inputs),  # type: ignore[union-attr]
        listed=lists.read_file(from_file) if from_file is not None else (),
        model=model,
        output=Path(output) if output is not None else None,
        **options,
    )
    return run(job, listener or (lambda _: None))


def run(job: Job, listener: Listener, stop: Stop | None = None, chatter: Callable[[], int] = lambda: 0) -> Report:
    """Do a job; see `extract`.

    Parameters
    ----------
    job : Job
        What is to be done.
    listener : callable
        Told what happens.
    stop : Stop or None
        Looked at while images are worked on.
    chatter : callable
        How many bytes libraries have written to standard error; see `featx.engine.isolation.Reader`.
    """
    job = completed(job)
    found = sources.find(job.inputs, job.listed)
    layout.tell_apart(found.items, found.crowded)
    output = job.output or Path("features") / folder_name(job.model)
    lock.require_usable(output)
    for text in remarks(found, job):
        listener(Note(text))
    # torch takes seconds to load; a wrong path should not cost them.
    from featx.engine import isolation
    from featx.models.pyramid import choose_devices, load
    from featx.runs import suspects

    devices = choose_devices(job.device)  # first, since a wrong device should not cost a download
    pyramids = [load(job.request, device) for device in devices]
    formats.require(job.format, pyramids[0].fields, job.dtype)
    with lock.hold(output) as held:
        before = read_summary(output)
        told: deque[str] = deque()
        setting = set_up(pyramids, job, found.items, output, before, told.append)
        job, plan, workers = setting.job, setting.plan, setting.workers
        if plan.to_do:  # converting or compiling takes its time, and is not done for nothing
            hand_over(setting.computers, workers)
        if before:  # whose outputs may have to be cleared away
            formats.require(before["recipe"]["format"])
        pending = still_suspected(held.unfinished, output, plan)
        held.begin(anew=job.overwrite)
        writer = formats.writer(job.format, output, held.unfinished, pyramids[0].fields)
        if before:
            name = before["recipe"]["format"]
            same = name == job.format
            clear_up(writer if same else formats.writer(name, output, held.unfinished, ANY_VECTOR), output, name)
        suspected = pending.keys() & suspects.marks_of(plan.to_do) if pending else set()
        facts = {**facts_of(pyramids[0], setting.recipe), "unchosen": sorted(unchosen(job, setting.earlier))}
        counts = (plan.kept_done, plan.kept_failed, len(plan.to_do))
        ledger = recorder.Ledger(output, held, facts, *counts, setting.earlier)
        ledger.save("running")
        listener(Planned(ledger.summary, output, len(plan.to_do), plan.done, tuple(plan.failures)))
        for text in (*held.notes, *surprises(setting, suspected)):
            listener(Note(text))
        reader = isolation.Reader(
            pyramids[0].preprocessor,
            job.limits,
            held.unfinished,
            suspected | suspects.marks_of(plan.retried),
            isolate=job.isolate or bool(suspected),
            hashed=job.hash_inputs,
            chatter=chatter,
        )
        crew = Crew(setting.computers, writer, workers, reader, stop or Stop(), told, held.unfinished, pending)
        failures = list(plan.failures)
        with booked(ledger, crew), machine(devices, workers):
            failures += work_off(plan.to_do, crew, ledger, listener)
            if plan.again or len(failures) > len(plan.failures):
                clear_up(writer, output, job.format)
        facts["largest_pass"] = min(computer.largest for computer in setting.computers)
        ledger.save("done")
    tried = len(plan.to_do)
    return Report(ledger.summary, output, tried, tried - (len(failures) - len(plan.failures)), failures)
