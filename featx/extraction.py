# extract: plan what is to be done, have the pipeline do it, and fold the outcomes into the run's books.
"""``featx extract`` as a function."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import metadata
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import featx
from featx import manifest, sources
from featx.errors import StoppedError, UsageError
from featx.records import Item, Job, Listener, ModelRequest, Note, Outcome, Planned, Workers, many_records

if TYPE_CHECKING:
    import torch

    from featx.computing import Computer
    from featx.pyramid import Pyramid

DTYPES = ("float32", "float16")

# Where a batch stops making a processor faster; measured on ResNet-50 at 224, one thread a pass.
LARGEST_BATCH = 8

# Passes at a time on a graphics card: while one is computed, another is copied there and a third one back.
STREAMS = 3


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


def extract(
    inputs: str | PathLike[str] | Iterable[str | PathLike[str]],
    model: str,
    output: str | PathLike[str] | None = None,
    *,
    from_file: str | PathLike[str] | None = None,
    weights: str | PathLike[str] = "pretrained",
    seed: int = 0,
    out_indices: Sequence[int] | Literal["all"] | None = None,
    strides: Sequence[float] | None = None,
    output_stride: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    test_size: bool = False,
    device: str = "auto",
    precision: str = "fp32",
    backend: str = "torch",
    dtype: str = "float32",
    batch_size: int | None = None,
    workers: int | None = None,
    listener: Listener | None = None,
) -> Report:
    """Write the feature pyramid of every image to a folder; calling it again goes on where it stopped.

    Parameters
    ----------
    inputs : str, path or iterable of them
        Files, folders (walked) and glob patterns.
    model : str
        ``arch``, ``arch.tag``, ``hf-hub:org/name`` or ``local-dir:path``.
    output : path or None
        The run's folder; None takes ``features/<model>``.
    from_file : path or None
        A list of images, one path a line.
    weights, seed, out_indices, strides, output_stride, image_size, test_size, device, precision
        As `featx.load_pyramid` has them; the device may also be several, ``cuda:0,1`` or ``all``.
    backend : str
        What runs the network: ``torch``, ``compile`` (torch.compile) or ``openvino``.
    dtype : str
        ``float32`` or ``float16``: what the maps are written as.
    batch_size : int or None
        Images in one forward pass; None takes what an earlier call took, or what suits the device.
    workers : int or None
        Forward passes at a time; None takes one a core, or what suits a graphics card.
    listener : callable or None
        Called with `featx.records.Note`, `Planned` and `Outcome` as they come.

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
    request = ModelRequest.of(
        model, weights, seed, out_indices, strides, output_stride, image_size, test_size, precision, backend
    )
    return run(
        Job(
            inputs=(str(inputs),) if one else tuple(str(value) for value in inputs),  # type: ignore[union-attr]
            request=request,
            listed=sources.read_list(Path(from_file).read_bytes()) if from_file else (),
            output=Path(output) if output is not None else None,
            device=device,
            batch_size=batch_size,
            workers=workers,
            dtype=dtype,
        ),
        listener or (lambda _: None),
    )


def run(job: Job, listener: Listener) -> Report:
    """Do a job; see `extract`."""
    _require_sound(job)
    found = sources.find(job.inputs, job.listed)
    output = job.output or Path("features") / folder_name(job.request.name)
    manifest.require_usable(output)
    for text in _remarks(found):
        listener(Note(text))
    # torch takes seconds to load; a wrong path should not cost them.
    from featx import pipeline
    from featx.pyramid import choose_devices, load

    devices = choose_devices(job.device)  # first, since a wrong device should not cost a download
    pyramids = [load(job.request, device) for device in devices]
    with manifest.hold(output) as lines:
        earlier = manifest.read_summary(output)
        told: deque[str] = deque()
        then = (earlier or {}).get("recipe", {})
        computers, workers = spread(pyramids, job, len(found.items), then, told.append)
        recipe = _recipe(pyramids[0], job, workers)
        if earlier:
            manifest.require_same_recipe(output, earlier["recipe"], recipe)
        plan = plan_work(output, found.items)
        if plan.to_do:  # converting or compiling takes its time, and is not done for nothing
            hand_over(computers, workers)
        facts = _facts(pyramids[0], recipe)
        ledger = manifest.Ledger(output, lines, facts, plan.kept_done, plan.kept_failed, len(plan.to_do), earlier)
        ledger.save("running")
        listener(Planned(ledger.summary, output, len(plan.to_do), plan.done, tuple(plan.failures)))
        failures = list(plan.failures)
        try:
            with closing(pipeline.run(computers, plan.to_do, output, workers)) as outcomes, machine(devices, workers):
                for outcome in outcomes:
                    while told:
                        listener(Note(told.popleft()))
                    ledger.enter(outcome)
                    listener(outcome)
                    if not outcome.done:
                        failures.append(outcome)
        except BaseException as error:
            ledger.save("stopped")
            if isinstance(error, KeyboardInterrupt):
                raise StoppedError(f"Stopped: {ledger.progress}", "Run the same command to resume") from error
            raise
        facts["largest_pass"] = min(computer.largest for computer in computers)
        ledger.save("done")
    tried = len(plan.to_do)
    return Report(ledger.summary, output, tried, tried - (len(failures) - len(plan.failures)), failures)


def folder_name(model: str) -> str:
    """Name the folder of a model's features: its own name, without prefix and without slashes."""
    prefix, _, rest = model.rpartition(":")
    return Path(rest).resolve().name if prefix == "local-dir" else rest.replace("/", "--")


@dataclass(frozen=True, slots=True)
class _Plan:
    """What an earlier call left to do.

    `kept_done` and `kept_failed` count the manifest's lines that stand, of all images in the folder; `done` and
    `failures` are those of this call's images among them.
    """

    to_do: list[Item]
    kept_done: int
    kept_failed: int
    done: int
    failures: list[Outcome]


@many_records()
def plan_work(folder: Path, items: list[Item]) -> _Plan:
    """Hold the images against the manifest; linear, and small enough for a million of them."""
    known = manifest.known(folder)
    root = str(folder)
    to_do, done, failures = [], 0, []
    for item in items:
        line = known.get(item.key)
        if line is None or not manifest.still_valid(root, line, item.path):
            to_do.append(item)
            known.pop(item.key, None)
        elif line.done:
            done += 1
        else:
            failures.append(Outcome(item, stage=line.stage, error=line.error))
    kept_done = sum(line.done for line in known.values())
    return _Plan(to_do, kept_done, len(known) - kept_done, done, failures)


def _require_sound(job: Job) -> None:
    """Refuse what needs no torch to be refused."""
    if job.batch_size is not None and job.batch_size < 1:
        raise UsageError(f"A batch of {job.batch_size} images is no batch", "Use a --batch-size of 1 or more")
    if job.workers is not None and job.workers < 1:
        raise UsageError(f"{job.workers} workers get nothing done", "Use --workers 1 or more")
    if job.dtype not in DTYPES:
        raise UsageError(f"Maps cannot be written as {job.dtype!r}", f"Use --dtype {' or '.join(DTYPES)}")


def spread(
    pyramids: list[Pyramid],
    job: Job,
    images: int,
    earlier: dict[str, Any],
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[list[Computer], Workers]:
    """Spread the work over the machine; what changes numbers and was not asked for stays what an earlier call took.

    On a processor every core has a forward pass to itself: passes of one thread do not wait for each other, and
    reading and writing fill what they leave. Only where there are fewer batches than cores do passes get more threads.
    """
    import torch

    from featx.computing import Computer

    cores = os.process_cpu_count() if hasattr(os, "process_cpu_count") else len(os.sched_getaffinity(0))
    batch_size = job.batch_size or earlier.get("batch_size")
    computers = [Computer(pyramid, getattr(torch, job.dtype), batch_size or images, tell) for pyramid in pyramids]
    if pyramids[0].device.type == "cpu":
        batch_size = batch_size or 1 << (min(images, LARGEST_BATCH).bit_length() - 1)
        batches = -(-images // batch_size)
        threads = earlier.get("threads") or cores // (job.workers or min(cores, batches)) or 1
        forwards = job.workers or max(1, cores // threads)
    else:
        batch_size = batch_size or min(images, computers[0].best_batch_size())
        forwards, threads = (job.workers or STREAMS) * len(pyramids), earlier.get("threads") or 1
    for computer in computers:
        computer.largest = batch_size
    return computers, Workers(batch_size, forwards, threads, readers=cores, writers=cores)


def hand_over(computers: Sequence[Computer], workers: Workers) -> None:
    """Have each network run by the backend that was asked for, from now on."""
    for computer in computers:
        computer.pyramid.hand_over(workers.batch_size, workers.forwards, workers.threads)


def _recipe(pyramid: Pyramid, job: Job, workers: Workers) -> dict[str, Any]:
    """Everything that changes the numbers."""
    return {
        "model": pyramid.name,
        "weights": pyramid.weights.sha256,
        "levels": [level.index for level in pyramid.levels],
        "output_stride": job.request.output_stride,
        "input": {fact: value for fact, value in pyramid.input.to_json().items() if fact != "configuration"},
        "rebuilt": pyramid.rebuilt,
        "precision": pyramid.precision,
        "backend": pyramid.backend,
        "dtype": job.dtype,
        "batch_size": workers.batch_size,
        "memory_format": "channels_last",
        "device": pyramid.device.type,
        "threads": workers.threads,
        "versions": _versions(),
    }


@contextmanager
def machine(devices: Sequence[torch.device], workers: Workers) -> Iterator[None]:
    """Set what torch keeps for the whole process, for as long as the run takes."""
    import torch

    from featx.pyramid import full_precision

    before = torch.get_num_threads()
    torch.set_num_threads(workers.threads)
    try:
        with full_precision(devices[0]):
            yield
    finally:
        torch.set_num_threads(before)


def _facts(pyramid: Pyramid, recipe: dict[str, Any]) -> dict[str, Any]:
    """The part of a summary that does not change while the run goes on."""
    return {
        "model": pyramid.name,
        "source": "timm",
        "architecture": pyramid.architecture,
        "weights": pyramid.weights.to_json(),
        "levels": [{**level.to_json(), "dtype": recipe["dtype"]} for level in pyramid.levels],
        "input": pyramid.input.to_json(),
        "recipe": recipe,
        "versions": recipe["versions"],
    }


def _versions() -> dict[str, str]:
    return {
        "featx": featx.__version__,
        **{name: metadata.version(name) for name in ("torch", "torchvision", "timm", "pillow")},
    }


def _remarks(found: sources.Found) -> list[str]:
    """What was left out, in words."""
    remarks = (
        (found.others, "not called like images: {} left out"),
        (found.unfollowed, "linked folders: {} not followed"),
        (found.repeated, "named more than once: {}, each taken once"),
    )
    return [text.format(count) for count, text in remarks if count]
