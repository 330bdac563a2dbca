# extract: plan what is to be done, have the pipeline do it, and fold the outcomes into the run's books.
"""``featx extract`` as a function."""

from __future__ import annotations

import json
import os
import signal
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import metadata
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from featx import files
from featx.engine import resources
from featx.engine.events import Listener, Planned
from featx.engine.resources import Workers
from featx.engine.stopping import InterruptedByError, Stop
from featx.errors import OutputError, StoppedError, StuckError, UsageError
from featx.images import lists, sources
from featx.options import OUTPUT_OPTIONS, Job, Limits, ModelRequest
from featx.runs import formats, lock, manifest, recorder
from featx.runs.layout import MANIFEST
from featx.runs.planning import Plan, plan_work
from featx.runs.recipe import require_same_recipe
from featx.runs.summary import read_summary
from featx.values import EMBEDDING, Field, Item, Note, Outcome
from featx.version import __version__

if TYPE_CHECKING:
    import torch

    from featx.engine.computing import Computer
    from featx.engine.isolation import Reader
    from featx.models.pyramid import Pyramid

DTYPES = ("float32", "float16")

# Where a batch stops making a processor faster; measured on ResNet-50 at 224, one thread a pass.
LARGEST_BATCH = 8

# What a format for vectors is told where it only has to clear up.
ANY_VECTOR = (Field(EMBEDDING, (1,)),)

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
    part: str = "backbone",
    maps: bool | None = None,
    norm: bool = False,
    prefix_tokens: bool = False,
    final: bool = False,
    embedding: bool = False,
    pool: str | None = None,
    dtype: str = "float32",
    format: str = "npz",  # noqa: A002 - the word of the command line
    batch_size: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    hash_inputs: bool = False,
    isolate: bool = False,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    listener: Listener | None = None,
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
    weights, seed, out_indices, strides, output_stride, image_size, test_size, device, precision
        As `featx.load_pyramid` has them; the device may also be several, ``cuda:0,1`` or ``all``.
    backend : str
        What runs the network: ``torch``, ``compile`` (torch.compile) or ``openvino``.
    part, norm, prefix_tokens, final, embedding, pool
        As `featx.load_pyramid` has them.
    maps : bool or None
        Whether levels are wanted at all; None takes them where the format can hold them.
    dtype : str
        ``float32`` or ``float16``: what maps are written as; an embedding is always float32.
    format : str
        ``npz``, a file an image; or, for embeddings alone, ``npy`` (one array, and ``keys.txt``) or ``parquet``.
    batch_size : int or None
        Images in one forward pass; None takes what an earlier call took, or what suits the device.
    workers : int or None
        Forward passes at a time; None takes one a core, or what suits a graphics card.
    overwrite : bool
        Start anew: what an earlier call left in the folder is removed first.
    retry_failed : bool
        Try images again that an earlier call failed on, and that are unchanged.
    hash_inputs : bool
        Tell by its sha256, not by size and time, whether an image was changed.
    isolate : bool
        Decode images in processes of their own from the start. Without it that is done after a crash or a hang, and
        for images that failed before.
    limits : Limits
        What one image may take of pixels, bytes, seconds and memory.
    listener : callable or None
        Called with `featx.values.Note`, `Planned` and `Outcome` as they come.

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
        model,
        weights=weights,
        seed=seed,
        out_indices=out_indices,
        strides=strides,
        output_stride=output_stride,
        image_size=image_size,
        test_size=test_size,
        precision=precision,
        backend=backend,
        part=part,
        norm=norm,
        prefix_tokens=prefix_tokens,
        final=final,
        embedding=embedding,
        pool=pool,
    )
    return run(
        Job(
            inputs=(str(inputs),) if one else tuple(str(value) for value in inputs),  # type: ignore[union-attr]
            request=request,
            listed=lists.read_file(from_file) if from_file is not None else (),
            output=Path(output) if output is not None else None,
            device=device,
            batch_size=batch_size,
            workers=workers,
            dtype=dtype,
            format=format,
            overwrite=overwrite,
            retry_failed=retry_failed,
            hash_inputs=hash_inputs,
            isolate=isolate,
            limits=limits,
            maps=maps,
        ),
        listener or (lambda _: None),
    )


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
    maps = not formats.vectors_only(job.format) if job.maps is None else job.maps
    job = replace(job, request=replace(job.request, maps=maps))
    require_sound(job)
    found = sources.find(job.inputs, job.listed)
    output = job.output or Path("features") / folder_name(job.request.name)
    lock.require_usable(output)
    for text in _remarks(found, job):
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
        setting = _set_up(pyramids, job, found.items, output, before, told.append)
        job, plan, workers = setting.job, setting.plan, setting.workers
        if plan.to_do:  # converting or compiling takes its time, and is not done for nothing
            hand_over(setting.computers, workers)
        if before:  # whose outputs may have to be cleared away
            formats.require(before["recipe"]["format"])
        pending = _suspected(held.unfinished, output, plan)
        held.begin(anew=job.overwrite)
        writer = formats.writer(job.format, output, held.unfinished, pyramids[0].fields)
        if before:
            name = before["recipe"]["format"]
            same = name == job.format
            _tidy(writer if same else formats.writer(name, output, held.unfinished, ANY_VECTOR), output, name)
        suspected = pending.keys() & suspects.marks_of(plan.to_do) if pending else set()
        facts = {**_facts(pyramids[0], setting.recipe), "unchosen": sorted(_unchosen(job, setting.earlier))}
        counts = (plan.kept_done, plan.kept_failed, len(plan.to_do))
        ledger = recorder.Ledger(output, held, facts, *counts, setting.earlier)
        ledger.save("running")
        listener(Planned(ledger.summary, output, len(plan.to_do), plan.done, tuple(plan.failures)))
        for text in (*held.notes, *_surprises(setting, suspected)):
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
        crew = _Crew(setting.computers, writer, workers, reader, stop or Stop(), told, held.unfinished, pending)
        failures = list(plan.failures)
        with _booked(ledger, crew), machine(devices, workers):
            failures += _work_off(plan.to_do, crew, ledger, listener)
            if plan.again or len(failures) > len(plan.failures):
                _tidy(writer, output, job.format)
        facts["largest_pass"] = min(computer.largest for computer in setting.computers)
        ledger.save("done")
    tried = len(plan.to_do)
    return Report(ledger.summary, output, tried, tried - (len(failures) - len(plan.failures)), failures)


@dataclass(frozen=True, slots=True)
class _Setting:
    """How a call is to go: what is to be done, by what, and which summary of an earlier call it continues."""

    job: Job
    plan: Plan
    computers: list[Computer]
    workers: Workers
    recipe: dict[str, Any]
    earlier: dict[str, Any] | None
    done_again: int = 0


def _set_up(
    pyramids: list[Pyramid],
    job: Job,
    items: list[Item],
    output: Path,
    before: dict[str, Any] | None,
    tell: Callable[[str], None],
) -> _Setting:
    """Choose batches and threads, make sure that the recipe is the folder's, and plan.

    What nobody chose was chosen for an earlier call's images. Where those were few, and now there are many, they are
    done again as suits the many: all features of a folder come from one recipe.
    """
    # Where no line was written, or all are about to go, there is nothing that another recipe could be mixed with.
    earlier = None if job.overwrite or next(manifest.lines(output), None) is None else before
    computers, workers = spread(pyramids, job, len(items), (earlier or {}).get("recipe", {}), tell)
    recipe = _recipe(pyramids[0], job, workers)
    require_same_recipe(output, earlier, recipe, pyramids[0].architecture)
    plan = plan_work(output, items, job)
    setting = _Setting(job, plan, computers, workers, recipe, earlier)
    if not earlier or not plan.is_worth_doing_again() or _unchosen(job, earlier) != _unchosen(job, None):
        return setting
    computers, suitable = spread(pyramids, job, len(plan.to_do), {}, tell)
    if suitable.batch_size <= workers.batch_size and suitable.threads >= workers.threads:
        return setting
    job = replace(job, overwrite=True)
    done_again = plan.kept_done + plan.again
    plan = plan_work(output, plan.renamed(items), job)
    return _Setting(job, plan, computers, suitable, _recipe(pyramids[0], job, suitable), None, done_again)


def _unchosen(job: Job, earlier: dict[str, Any] | None) -> set[str]:
    """Name what changes numbers and was chosen by featx, in this call and those before it."""
    asked = {"batch_size": job.batch_size, "threads": job.workers}
    unchosen = {name for name, value in asked.items() if value is None}
    return unchosen & set(earlier.get("unchosen", ())) if earlier else unchosen


@dataclass(frozen=True, slots=True)
class _Crew:
    """What works on the images, and what may stop it."""

    computers: list[Computer]
    writer: formats.Writer
    workers: Workers
    reader: Reader
    stop: Stop
    told: deque[str]
    unfinished: Path
    suspects: dict[bytes, bytes]

    def clear(self, outcomes: Sequence[Outcome]) -> None:
        """Suspect images no more, now that they have their lines."""
        from featx.runs.suspects import keep_in_mind, mark_of

        cleared = {mark_of(outcome.item) for outcome in outcomes} & self.suspects.keys() if self.suspects else ()
        for mark in cleared:
            del self.suspects[mark]
        if cleared:
            keep_in_mind(self.unfinished, self.suspects)


def _work_off(items: list[Item], crew: _Crew, ledger: recorder.Ledger, listener: Listener) -> list[Outcome]:
    """Have the pipeline do the items, and enter what becomes of each; returns those that failed."""
    from featx.engine import pipeline

    left, failures = deque(items), []

    def enter(group: Sequence[Outcome]) -> None:
        entered = ledger.enter(group)
        crew.clear(entered)
        for outcome in entered:
            left.popleft()
            listener(outcome)
            if not outcome.done:
                failures.append(outcome)

    while left and not crew.stop.asked():
        outcomes = pipeline.run(crew.computers, list(left), crew.writer, crew.workers, crew.reader, crew.stop.asked)
        try:
            with closing(outcomes), crew.stop.gently():
                for group in outcomes:
                    while crew.told:
                        listener(Note(crew.told.popleft()))
                    enter(group)
        except StuckError as stuck:
            if stuck.item in left:
                left.remove(stuck.item)
                left.appendleft(stuck.item)
                enter([Outcome(stuck.item, pipeline.stat_within(stuck.item.path), stage="decode", error=str(stuck))])
            listener(Note("An image hung: from here on images are read in processes of their own"))
            crew.reader.give_up()
    if left:
        raise InterruptedByError
    return failures


@contextmanager
def _booked(ledger: recorder.Ledger, crew: _Crew) -> Iterator[None]:
    """Leave the books in order, however the work ends."""
    try:
        yield
    except BaseException as error:
        with suppress(OutputError):  # the disk may be what is wrong; the books are good without it
            ledger.save("stopped")
        if isinstance(error, KeyboardInterrupt | InterruptedByError):
            raise StoppedError(
                f"Stopped: {ledger.progress}", "Run the same command to resume", crew.stop.signal or signal.SIGINT
            ) from error
        if isinstance(error, OutputError):
            raise type(error)(f"{error.message} ({ledger.progress})", error.hint) from error
        raise
    finally:
        crew.reader.close()


def _tidy(writer: formats.Writer, output: Path, name: str) -> None:
    """Have what the manifest does not vouch for cleared away."""
    if not formats.vectors_only(name):  # files of their own are replaced one by one
        return
    try:
        files.synchronise(output / MANIFEST)  # what it says is not to be lost after what it no longer vouches for
        writer.tidy(manifest.outputs(output), lambda: manifest.digests(output))
    except OSError as error:
        raise OutputError(f"{output} cannot be written: {error.strerror or error}", recorder.ROOM) from error


def _suspected(unfinished: Path, output: Path, plan: Plan) -> dict[bytes, bytes]:
    """Return the images that runs ended with, but for those that have got their line since, or are gone."""
    from featx.runs import suspects

    remembered = suspects.suspects(unfinished)
    if not remembered:
        return remembered
    to_do = suspects.marks_of(plan.to_do)
    lined = {suspects.mark_of_key(line["key"]) for _, line in manifest.lines(output)}
    pending = {
        mark: path
        for mark, path in remembered.items()
        if mark in to_do or (mark not in lined and (not path or os.path.lexists(path)))
    }
    suspects.keep_in_mind(unfinished, pending)
    return pending


def folder_name(model: str) -> str:
    """Name the folder of a model's features: its own name, without prefix and without slashes."""
    prefix, _, rest = model.rpartition(":")
    return Path(rest).resolve().name if prefix == "local-dir" else rest.replace("/", "--")


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

    from featx.engine.computing import Computer

    cores = resources.cores()
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
        computer.pyramid.hand_over(workers.batch_size, workers.forwards, workers.threads, computer.tell)


@dataclass(frozen=True, slots=True)
class Again:
    """What it takes to make features as a run's were made."""

    devices: list[torch.device]
    computers: list[Computer]
    workers: Workers

    @property
    def pyramid(self) -> Pyramid:
        """The run's."""
        return self.computers[0].pyramid


def set_up_again(summary: dict[str, Any], device: str, images: int) -> Again:
    """Load the model of a run, and have it run in the same batches by the same backend.

    Raises
    ------
    FeatxError
        If the model cannot be had as it was.
    """
    from featx.models.pyramid import choose_devices, load_again

    devices = choose_devices(device)[:1]
    pyramid = load_again(summary, devices[0])
    job = Job((), pyramid.request, dtype=summary["recipe"]["dtype"])
    computers, workers = spread([pyramid], job, images, summary["recipe"])
    hand_over(computers, workers)
    return Again(devices, computers, workers)


def _recipe(pyramid: Pyramid, job: Job, workers: Workers) -> dict[str, Any]:
    """Everything that changes the numbers."""
    request = pyramid.request
    recipe = {
        "model": pyramid.name,
        "weights": pyramid.weights.identity,
        "levels": [level.index for level in pyramid.levels],
        "strides": request.strides if request.part == "all" else None,  # elsewhere the levels say it
        **{option: getattr(request, option) for option in OUTPUT_OPTIONS},
        "output_stride": request.output_stride,
        "input": {fact: value for fact, value in pyramid.input.to_json().items() if fact != "configuration"},
        "rebuilt": pyramid.rebuilt,
        "precision": pyramid.precision,
        "backend": pyramid.backend,
        "dtype": job.dtype,
        "format": job.format,
        "batch_size": workers.batch_size,
        "memory_format": "channels_last",
        "device": pyramid.device.type,
        "threads": workers.threads,
        "versions": versions(pyramid.source, pyramid.backend),
    }
    # As it is read again: what is a tuple here is a list there.
    return json.loads(json.dumps(recipe))  # type: ignore[no-any-return]


@contextmanager
def machine(devices: Sequence[torch.device], workers: Workers) -> Iterator[None]:
    """Set what torch and Pillow keep for the whole process, for as long as the run takes."""
    import torch
    from PIL import Image

    from featx.images.fitting import lift_pillow_limit
    from featx.process import full_precision

    threads, pixels = torch.get_num_threads(), lift_pillow_limit()
    torch.set_num_threads(workers.threads)
    try:
        with full_precision(devices[0]):
            yield
    finally:
        torch.set_num_threads(threads)
        Image.MAX_IMAGE_PIXELS = pixels


def _facts(pyramid: Pyramid, recipe: dict[str, Any]) -> dict[str, Any]:
    """The part of a summary that does not change while the run goes on."""
    return {
        "model": pyramid.name,
        "source": pyramid.source,
        "architecture": pyramid.architecture,
        "weights": pyramid.weights.to_json(),
        "levels": [{**level.to_json(), "dtype": recipe["dtype"]} for level in pyramid.levels],
        **({"final": {**pyramid.final.to_json(), "dtype": recipe["dtype"]}} if pyramid.final else {}),
        "arrays": [
            replace(field, dtype="float32" if field.is_vector else recipe["dtype"]).to_json()
            for field in pyramid.fields
        ],
        "input": pyramid.input.to_json(),
        "recipe": recipe,
        "versions": recipe["versions"],
    }


def versions(source: str, backend: str) -> dict[str, str]:
    """Return the versions that numbers depend on."""
    more = {"ultralytics": ("ultralytics", "opencv-python"), "openvino": ("openvino",)}
    libraries = ("torch", "torchvision", "timm", "pillow", *more.get(source, ()), *more.get(backend, ()))
    return {"featx": __version__, **{name: _version(name) for name in libraries}}


def _version(name: str) -> str:
    """Return the version of a library, which may be installed without what draws windows."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return metadata.version(f"{name}-headless")


def _surprises(setting: _Setting, suspected: Collection[bytes]) -> list[str]:
    """What a person may not expect, in words."""
    plan, workers = setting.plan, setting.workers
    texts = []
    if setting.done_again:
        texts.append(
            f"{_images(setting.done_again)} computed again, in batches of {workers.batch_size} like the new ones"
        )
    elif setting.earlier and not setting.job.batch_size and workers.batch_size < LARGEST_BATCH < len(plan.to_do):
        texts.append(
            f"Batches of {workers.batch_size}, as in the calls before; larger ones may be faster, "
            "and need --overwrite to start anew"
        )
    if plan.known_as:
        key, earlier = next(iter(plan.known_as.items()))
        texts.append(
            f"{_images(len(plan.known_as))} in the run under another key already, and not computed again: "
            f"{key} is stored as {earlier}"
        )
    if plan.gone:
        texts.append(f"{_images(plan.gone)} no longer there; the features are kept")
    if suspected:
        names = ", ".join(sorted(mark.decode(errors="replace") for mark in suspected))
        texts.append(f"An earlier call ended while reading {names}: images are read in processes of their own now")
    return texts


def _images(count: int) -> str:
    return "1 image is" if count == 1 else f"{count} images are"


def _remarks(found: sources.Found, job: Job) -> list[str]:
    """What was left out, in words."""
    once = ", such as {} as {}".format(*found.example) if found.example else ""
    remarks = (
        (found.others, "not called like images: ", " left out"),
        (found.unfollowed, "linked folders: ", " not followed"),
        (found.closed, "folders that cannot be read: ", ", their images are left out"),
        (found.repeated, "named more than once: ", f", each taken once{once}"),
    )
    left_out = [f"{what}{count}{then}" for count, what, then in remarks if count]
    if formats.vectors_only(job.format) and job.maps is None:
        left_out.append(f"{job.format} keeps vectors: no maps are written")
    return left_out
