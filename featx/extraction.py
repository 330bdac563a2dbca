# extract: plan what is to be done, have the pipeline do it, and fold the outcomes into the run's books.
"""``featx extract`` as a function."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import featx
from featx import manifest, sources
from featx.errors import StoppedError, UsageError
from featx.records import Item, Job, Listener, ModelRequest, Note, Outcome, Planned

if TYPE_CHECKING:
    from featx.pyramid import Pyramid

# Where a batch stops making a processor or a graphics card faster; measured on ResNet-50 at 224.
LARGEST_BATCH = {"cpu": 8, "cuda": 32, "mps": 16}


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
    batch_size: int | None = None,
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
    weights, seed, out_indices, strides, output_stride, image_size, test_size, device
        As `featx.load_pyramid` has them.
    batch_size : int or None
        Images in one forward pass; None takes what an earlier call took, or what suits the device.
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
    request = ModelRequest.of(model, weights, seed, out_indices, strides, output_stride, image_size, test_size)
    return run(
        Job(
            inputs=(str(inputs),) if one else tuple(str(value) for value in inputs),  # type: ignore[union-attr]
            request=request,
            listed=sources.read_list(Path(from_file).read_bytes()) if from_file else (),
            output=Path(output) if output is not None else None,
            device=device,
            batch_size=batch_size,
        ),
        listener or (lambda _: None),
    )


def run(job: Job, listener: Listener) -> Report:
    """Do a job; see `extract`."""
    if job.batch_size is not None and job.batch_size < 1:
        raise UsageError(f"A batch of {job.batch_size} images is no batch", "Use a --batch-size of 1 or more")
    found = sources.find(job.inputs, job.listed)
    output = job.output or Path("features") / folder_name(job.request.name)
    manifest.require_usable(output)
    for text in _remarks(found):
        listener(Note(text))
    # torch takes seconds to load; a wrong path should not cost them.
    from featx import pipeline
    from featx.pyramid import load

    pyramid = load(job.request, job.device)
    with manifest.hold(output) as lines:
        earlier = manifest.read_summary(output)
        recipe = _recipe(pyramid, job, len(found.items), earlier)
        if earlier:
            manifest.require_same_recipe(output, earlier["recipe"], recipe)
        plan = _plan(output, found.items)
        ledger = manifest.Ledger(output, lines, _facts(pyramid, recipe), plan.kept, len(plan.to_do), earlier)
        ledger.save("running")
        listener(Planned(ledger.summary, output, len(plan.to_do), plan.done, tuple(plan.failures)))
        failures = list(plan.failures)
        try:
            for outcome in pipeline.run(pyramid, plan.to_do, output, recipe["batch_size"]):
                ledger.enter(outcome)
                listener(outcome)
                if not outcome.done:
                    failures.append(outcome)
        except BaseException as error:
            ledger.save("stopped")
            if isinstance(error, KeyboardInterrupt):
                raise StoppedError(f"Stopped: {ledger.progress}", "Run the same command to resume") from error
            raise
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

    `kept` has the manifest's lines that stand, of all images in the folder; `done` and `failures` count and list those
    of this call's images among them.
    """

    to_do: list[Item]
    kept: list[dict[str, Any]]
    done: int
    failures: list[Outcome]


def _plan(folder: Path, items: list[Item]) -> _Plan:
    known = manifest.lines(folder)
    to_do, done, failures = [], 0, []
    for item in items:
        line = known.get(item.key)
        if line is None or not manifest.still_valid(folder, line, item.path):
            to_do.append(item)
            known.pop(item.key, None)
        elif line["status"] == "done":
            done += 1
        else:
            failures.append(Outcome(item, stage=line["stage"], error=line["error"]))
    return _Plan(to_do, list(known.values()), done, failures)


def _recipe(pyramid: Pyramid, job: Job, images: int, earlier: dict[str, Any] | None) -> dict[str, Any]:
    """Everything that changes the numbers; a batch size that was not asked for is what an earlier call took."""
    import torch

    largest = min(images, LARGEST_BATCH[pyramid.device.type])
    batch_size = (
        job.batch_size or (earlier or {}).get("recipe", {}).get("batch_size") or 1 << (largest.bit_length() - 1)
    )
    return {
        "model": pyramid.name,
        "weights": pyramid.weights.sha256,
        "levels": [level.index for level in pyramid.levels],
        "output_stride": job.request.output_stride,
        "input": {fact: value for fact, value in pyramid.input.to_json().items() if fact != "configuration"},
        "rebuilt": pyramid.rebuilt,
        "precision": "fp32",
        "dtype": "float32",
        "batch_size": batch_size,
        "device": pyramid.device.type,
        "threads": torch.get_num_threads(),
        "versions": _versions(),
    }


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
